-- An item that is in nobody's hands any more leaves for good: its content too, unless it lies at home.
local function forget(K, id, chunks)
  redis.call('DEL', K .. ITEM .. id, K .. BODY .. id)
  for n = 1, chunks do redis.call('DEL', K .. BODY .. id .. ':' .. n) end
  redis.call('HDEL', K .. NOTES, id, '!' .. id)
end

-- It was settled: under the token `by`, if not everybody got it. What settled it first stays.
local function remember(K, slot, field, retention_ms, by)
  redis.call('HSETNX', K .. DONE .. slot, field, by or '')
  redis.call('PEXPIRE', K .. DONE .. slot, retention_ms)
end

local function owe(K, notice_id, notice, due)
  if notice_id ~= '' then
    redis.call('HSET', K .. NOTICES, notice_id, notice)
    redis.call('ZADD', K .. INDEX, 'LT', due, NOTICE_WORK)
  end
end
