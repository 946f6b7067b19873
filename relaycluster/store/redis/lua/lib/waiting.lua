-- What enters and leaves the waiting items of a domain; keeps index, backlog and counts in step.
local function paused_until(K, domain)
  local entry = redis.call('HGET', K .. PAUSED, domain)
  return entry and tonumber(string.match(entry, '^%d+')) or 0
end

-- Returns whether the domain became due earlier than the index said.
local function add_waiting(K, id, class, domain, due, size)
  local due_key = K .. DUE .. class .. ':' .. domain
  redis.call('ZADD', due_key, due, id)
  redis.call('ZINCRBY', K .. BACKLOG, 1, domain)
  redis.call('HINCRBY', K .. COUNTS, 'waiting', 1)
  redis.call('HINCRBY', K .. COUNTS, 'bytes', size)
  if redis.call('ZRANGE', due_key, 0, 0)[1] ~= id then return false end -- the index has what goes before it
  due = math.max(tonumber(due), paused_until(K, domain))
  return redis.call('ZADD', K .. INDEX, 'LT', 'CH', due, domain) == 1
end

-- After items of a domain left `due`: when is it due next?
local function reindex(K, domain, now_ms)
  local next_due
  for class = 0, 2 do
    local first = redis.call('ZRANGE', K .. DUE .. class .. ':' .. domain, 0, 0, 'WITHSCORES')
    if first[2] and (not next_due or tonumber(first[2]) < next_due) then next_due = tonumber(first[2]) end
  end
  if not next_due then
    redis.call('ZREM', K .. INDEX, domain)
    redis.call('HDEL', K .. REPLIES, domain)
    redis.call('HDEL', K .. PAUSED, domain)
    return
  end
  local until_ms = paused_until(K, domain)
  if until_ms > 0 and until_ms <= now_ms then redis.call('HDEL', K .. PAUSED, domain) end
  redis.call('ZADD', K .. INDEX, math.max(next_due, until_ms), domain)
end

local function remove_waiting(K, ids, domain, size)
  if tonumber(redis.call('ZINCRBY', K .. BACKLOG, -#ids, domain)) <= 0 then redis.call('ZREM', K .. BACKLOG, domain) end
  redis.call('HINCRBY', K .. COUNTS, 'waiting', -#ids)
  redis.call('HINCRBY', K .. COUNTS, 'bytes', -size)
end
