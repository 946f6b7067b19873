-- Whether an incarnation lived and ended, by the snapshot of the caller: the next number to be given out, and those that live
-- (',1,5,7,'). One that the snapshot is too old to know is not dead.
local function is_dead(incarnation, next_incarnation, alive)
  return tonumber(incarnation) < tonumber(next_incarnation) and not string.find(alive, ',' .. incarnation .. ',', 1, true)
end
