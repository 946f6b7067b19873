-- note: a stale holder delivered to some recipients; whoever holds the item next shall know.
-- KEYS: 1 partition tag
-- ARGV: 1 id  2... recipients
-- Result: 'done', or 'stale' when the item is gone
-- First write: DEL (of nothing: it lets the rest be written when Redis is full).
local K, id = KEYS[1], ARGV[1]
if redis.call('EXISTS', K .. ITEM .. id) == 0 then return 'stale' end
redis.call('DEL', K .. ':scratch')
local note = redis.call('HGET', K .. NOTES, id)
if note == '*' then return 'done' end
local known = {}
for line in string.gmatch(note or '', '[^\n]+') do known[line] = true end
for n = 2, #ARGV do
  if not known[ARGV[n]] then note = (note and note .. '\n' or '') .. ARGV[n] end
end
redis.call('HSET', K .. NOTES, id, note)
return 'done'
