-- Queue time in milliseconds: Redis TIME plus the offset that the beats carry, which makes up for a clock that
-- was set back (docs/design/queue.md, "Ownership").
if redis.replicate_commands then redis.replicate_commands() end
local function now(offset_ms)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + offset_ms
end
