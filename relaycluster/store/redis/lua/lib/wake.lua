-- Tell the owner, if there is one, that a domain of this partition has become due. A hint: the poll is the truth.
local function wake(K, domain)
  local owner = redis.call('GET', K .. OWNER)
  if owner then
    local incarnation = string.match(owner, '^(%d+):')
    if incarnation then redis.call('PUBLISH', WAKE_CHANNEL .. incarnation, string.sub(K, 5, -2) .. ':' .. domain) end
  end
end
