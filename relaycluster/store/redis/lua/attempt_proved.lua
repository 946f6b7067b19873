-- attempt_proved: each subject has logged in: nothing counts against it any more, and it is known (`policy/backoff.py`).
-- KEYS: 1 the tag of the attempts
-- ARGV: 1 offset_ms  2 proved_ms: how long a success is remembered  3... subjects
-- Result: nothing
-- First write: DEL.
-- needs: now
local K, time = KEYS[1], now(ARGV[1])
for n = 3, #ARGV do
  redis.call('DEL', K .. TRIED .. ARGV[n])
  redis.call('SET', K .. TRIED .. ARGV[n], string.format('0 0 %.0f', time), 'PX', ARGV[2])
end
