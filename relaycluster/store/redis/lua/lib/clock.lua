-- The cluster's clock (docs/design/queue.md, "Ownership"): `lease` advances by at most max_step_ms between two calls, `offset` makes
-- up for a clock that was set back. Returns both, and Redis TIME in ms.
if redis.replicate_commands then redis.replicate_commands() end
local function tick(K, max_step_ms)
  local t = redis.call('TIME')
  local time = t[1] * 1000 + math.floor(t[2] / 1000)
  local stored = redis.call('HMGET', K .. CLOCK, 'seen', 'lease', 'offset')
  local seen, lease, offset = tonumber(stored[1] or time), tonumber(stored[2] or 0), tonumber(stored[3] or 0)
  local step = time - seen
  if step < 0 then
    offset = offset - step
    step = 0
  elseif step > max_step_ms then
    step = max_step_ms
  end
  lease = lease + step
  redis.call('DEL', K .. ':scratch')
  redis.call('HSET', K .. CLOCK, 'seen', string.format('%.0f', time), 'lease', string.format('%.0f', lease), 'offset',
    string.format('%.0f', offset))
  return lease, offset, time
end

local function changed(K)
  redis.call('HINCRBY', K .. CLOCK, 'version', 1)
  redis.call('PUBLISH', MEMBERSHIP_CHANNEL, 'members')
end

-- Members whose lease ran out are removed: that is final.
local function expire(K, lease)
  local gone = redis.call('ZRANGEBYSCORE', K .. BEATS, '-inf', lease)
  for _, incarnation in ipairs(gone) do
    redis.call('ZREM', K .. BEATS, incarnation)
    redis.call('HDEL', K .. MEMBERS, incarnation)
  end
  if #gone > 0 then changed(K) end
end
