-- An item that is in nobody's hands any more leaves for good: its content too, unless it lies at home.
local function forget(K, id, chunks)
  redis.call('DEL', K .. ITEM .. id, K .. BODY .. id)
  for n = 1, chunks do redis.call('DEL', K .. BODY .. id .. ':' .. n) end
  redis.call('HDEL', K .. NOTES, id, '!' .. id)
end

local function remember(K, slot, field, retention_ms)
  redis.call('HSET', K .. DONE .. slot, field, '')
  redis.call('PEXPIRE', K .. DONE .. slot, retention_ms)
end

local function owe(K, notice_id, notice, due)
  if notice_id ~= '' then
    redis.call('HSET', K .. NOTICES, notice_id, notice)
    redis.call('ZADD', K .. INDEX, 'LT', due, NOTICE_WORK)
  end
end
