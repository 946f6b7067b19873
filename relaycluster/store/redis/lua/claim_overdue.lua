-- claim_overdue: waiting -> leased, for a domain to which nothing can be sent now: of its due items those that must not wait for that, as their
-- lifetime is over, or their sender is to hear of the delay. In steps, so that nobody waits for a long queue.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 owner text  3 domain  4 class  5 limit  6 first claim number  7 largest body that comes along
--       8 how many due items to pass over  9 how many to look at  10 expired when it arrived before (ms)  11 delayed when before (ms)
--       12 and 13 the ids of those times: no item arrived before its id was made
-- Result: {'lost'} when the partition has another owner; else {how many to pass over next, or -1 at the end,
--         id, token, item, body or false, note or false, ...}
-- First write: ZREM.
-- needs: now item waiting lease
local K, domain = KEYS[1], ARGV[3]
if redis.call('GET', K .. OWNER) ~= ARGV[2] then return {'lost'} end
local now_ms, limit, number, size = now(ARGV[1]), tonumber(ARGV[5]), tonumber(ARGV[6]), 0
local start, most, expired, delayed = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local function made(id) return tonumber(string.sub(id, 1, 10), 36) end -- sorts as the id does
local expired_id, delayed_id = made(ARGV[12]), made(ARGV[13])

local function overdue(id)
  local at = made(id)
  if at >= expired_id and at >= delayed_id then return nil end
  local packed = redis.call('GET', K .. ITEM .. id)
  if not packed then return nil end
  local is_told = math.floor(string.byte(packed, 2) / DELAY_NOTIFIED) % 2 == 1
  if at >= expired_id and is_told then return nil end
  local arrived = item_arrived(packed)
  return arrived and (arrived < expired or not is_told and arrived < delayed) and packed
end

local due_key, result, taken, looked = K .. DUE .. ARGV[4] .. ':' .. domain, {-1}, {}, 0
local found = redis.call('ZRANGEBYSCORE', due_key, '-inf', now_ms, 'WITHSCORES', 'LIMIT', start, most)
for n = 1, #found, 2 do
  if #taken == limit then break end
  local id = found[n]
  local packed = overdue(id)
  if packed then
    redis.call('ZREM', due_key, id)
    taken[#taken + 1] = id
    size = size + item_size(packed)
    lease(K, result, id, string.format('%s:%.0f:%s', ARGV[2], number, found[n + 1]), packed, ARGV[7])
    number = number + 1
  end
  looked = looked + 1
end
if looked == most or 2 * looked < #found then result[1] = start + looked - #taken end
if #taken > 0 then
  remove_waiting(K, taken, domain, size)
  reindex(K, domain, now_ms)
end
return result
