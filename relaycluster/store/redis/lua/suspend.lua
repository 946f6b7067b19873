-- suspend: a domain, suffix, limit or everything gets no mail for now, in the whole cluster; or it does again.
-- KEYS: 1 cluster tag
-- ARGV: 1 offset_ms  2 subject  3 for how many ms (0: until it is resumed; -1: it is resumed)  4 who and why, packed
--       5 '1' when one that lasts longer stays (a rule's; an operator's word replaces what was said)
--       6 for how many ms an ended one is still shown, so that every node hears who ended it
-- Result: the entry that holds now, 'until:since:who and why'; '' when there was none to resume
-- First write: HDEL.
-- needs: now
local K, subject = KEYS[1], ARGV[2]
local now_ms, wanted = now(ARGV[1]), tonumber(ARGV[3])
local all = redis.call('HGETALL', K .. SUSPENDED)
for n = 1, #all, 2 do
  local until_ms = tonumber(string.match(all[n + 1], '^(%d+):'))
  if until_ms > 0 and until_ms + ARGV[6] < now_ms then redis.call('HDEL', K .. SUSPENDED, all[n]) end
end
local held = redis.call('HGET', K .. SUSPENDED, subject)
local old_until = held and tonumber(string.match(held, '^(%d+):'))
local holds = held and (old_until == 0 or old_until > now_ms)
if wanted < 0 and not holds then return '' end
local until_ms = wanted > 0 and now_ms + wanted or 0
if wanted < 0 then until_ms = now_ms end
if ARGV[5] == '1' and holds and (old_until == 0 or old_until >= until_ms and until_ms > 0) then return held end
local entry = string.format('%.0f:%.0f:', until_ms, now_ms) .. ARGV[4]
redis.call('HDEL', K .. SUSPENDED, subject)
redis.call('HSET', K .. SUSPENDED, subject, entry)
redis.call('HINCRBY', K .. CLOCK, 'suspensions', 1)
redis.call('PUBLISH', MEMBERSHIP_CHANNEL, 'suspensions')
return entry
