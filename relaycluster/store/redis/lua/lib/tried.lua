-- What is known of a subject whose logins are counted (`policy/backoff.py`, Record): drained_ms, shut_ms, proved_ms.
local function tried(K, subject)
  local drained, shut, proved = string.match(redis.call('GET', K .. TRIED .. subject) or '', '^(%d+) (%d+) (%d+)$')
  return tonumber(drained or 0), tonumber(shut or 0), tonumber(proved or 0)
end

-- More than any step says comes from a clock that has gone back since: that is nothing.
local function shut_for(shut, now_ms, most_ms)
  local wait = shut - now_ms
  if wait > most_ms then return 0 end
  return math.max(0, wait)
end
