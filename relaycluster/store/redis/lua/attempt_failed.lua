-- attempt_failed: one more failed login of each subject (`policy/backoff.py`).
-- KEYS: 1 the tag of the attempts
-- ARGV: 1 offset_ms  2 proved_ms: how long a success is remembered
--       3 subject  4 free  5 first_ms  6 most_ms  7 forgive_ms  8 most_failures  9 subject ...
-- Result: for each subject, for how many milliseconds it is shut now
-- First write: DEL.
-- needs: now tried
local K, time, result = KEYS[1], now(ARGV[1]), {}
for n = 3, #ARGV, 6 do
  local subject, free, first = ARGV[n], tonumber(ARGV[n + 1]), tonumber(ARGV[n + 2])
  local most, forgive, most_failures = tonumber(ARGV[n + 3]), tonumber(ARGV[n + 4]), tonumber(ARGV[n + 5])
  local drained, shut, proved = tried(K, subject)
  local debt = math.min(math.max(0, drained - time) + forgive, most_failures * forgive)
  local over = math.ceil(debt / forgive) - free - 1
  local wait = shut_for(shut, time, most)
  if over >= 0 then wait = math.max(wait, math.min(first * 2 ^ over, most)) end
  local keep = math.max(debt, wait, proved > 0 and proved + ARGV[2] - time or 0) + 1000
  redis.call('DEL', K .. TRIED .. subject)
  redis.call('SET', K .. TRIED .. subject, string.format('%.0f %.0f %.0f', time + debt, time + wait, proved), 'PX',
    string.format('%.0f', keep))
  result[#result + 1] = wait
end
return result
