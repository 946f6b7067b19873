-- Records join the history under a name: a slot that first attempts share, or an item's id. What it takes is counted, in whole blocks, so
-- that most records cost no count; and when it was begun (an item's own: last written) is kept, so that the oldest can leave.
local function add_trace(K, name, records, offset_ms)
  local length = redis.call('APPEND', K .. TRACE .. name, records)
  local before = length - #records
  local blocks = math.floor(length / TRACE_BLOCK) - math.floor(before / TRACE_BLOCK)
  local is_new = before == 0
  if is_new or #name > SLOT_LENGTH then redis.call('ZADD', K .. TRACES, now(offset_ms), name) end
  if is_new or blocks > 0 then
    redis.call('HINCRBY', K .. COUNTS, 'trace', blocks * TRACE_BLOCK + (is_new and TRACE_OVERHEAD or 0))
  end
end
