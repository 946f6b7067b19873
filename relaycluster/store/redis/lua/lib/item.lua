-- The head of a packed item (codec.py): version, flags, holder deaths, class, length of the domain, domain.
local POSSIBLE_DUPLICATE = 1
local function item_class(packed) return string.byte(packed, 4) end
local function item_domain(packed) return string.sub(packed, 6, 5 + string.byte(packed, 5)) end
local function item_size(packed)
  local at = 6 + string.byte(packed, 5)
  local a, b, c, d = string.byte(packed, at, at + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end
