-- The head of a packed item (codec.py): version, flags, holder deaths, class, length of the domain, domain.
local POSSIBLE_DUPLICATE, DELAY_NOTIFIED = 1, 2
local function item_class(packed) return string.byte(packed, 4) end
local function item_domain(packed) return string.sub(packed, 6, 5 + string.byte(packed, 5)) end
local function item_size(packed)
  local at = 6 + string.byte(packed, 5)
  local a, b, c, d = string.byte(packed, at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

-- When it arrived; nil of one that can not be read.
local function item_arrived(packed)
  local read, rest = pcall(cmsgpack.unpack, string.sub(packed, 10 + string.byte(packed, 5)))
  return read and type(rest) == 'table' and tonumber(rest[6]) or nil
end
