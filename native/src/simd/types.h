// Types that every instruction set loads.
#pragma once

#include <cstdint>

namespace gemwright {

struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

constexpr int kLanes = 16;  // float32 values in a vector, rows in a panel

}  // namespace gemwright
