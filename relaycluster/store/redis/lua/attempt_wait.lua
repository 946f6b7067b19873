-- attempt_wait: for how long a login of these subjects, narrowest first, is refused unseen (`policy/backoff.py`).
-- KEYS: 1 the tag of the attempts
-- ARGV: 1 offset_ms  2 proved_ms: how long a success is remembered  3 subject  4 its most_ms  5 subject ...
-- Result: milliseconds, 0 when it is not refused
-- First write: none, it only reads.
-- needs: now tried
local K, time, longest = KEYS[1], now(ARGV[1]), 0
for n = 3, #ARGV, 2 do
  local _, shut, proved = tried(K, ARGV[n])
  longest = math.max(longest, shut_for(shut, time, tonumber(ARGV[n + 1])))
  if proved > time - ARGV[2] then break end
end
return longest
