-- An operator's act is owed to the log until the owner has told it; it joins the item's history, where one is kept.
local function tell(K, act, name, offset_ms)
  redis.call('RPUSH', K .. ACTS, act)
  redis.call('ZADD', K .. INDEX, 'LT', now(offset_ms), OPERATOR_WORK)
  if name ~= '' then add_trace(K, name, act, offset_ms) end
end

-- No more work for the operator? Then the index need not say so.
local function operator_idle(K)
  if redis.call('LLEN', K .. ACTS) == 0 and redis.call('ZCARD', K .. BOUNCING) == 0 then
    redis.call('ZREM', K .. INDEX, OPERATOR_WORK)
  end
end
