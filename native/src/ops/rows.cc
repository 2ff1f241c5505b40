#include <algorithm>

#include "kernels/kernels.h"
#include "ops/ops.h"
#include "ops/repack.h"
#include "ops/split.h"

namespace gemwright {

constexpr int64_t kTaskBytes = 1 << 14;  // bytes of panels per task: 1 to 2 µs

std::string rows(Pool& pool, std::string_view encoding_name, const uint8_t* packed, int64_t packed_size,
                 const int32_t* ids, int64_t n, float* y, int64_t width) {
  const auto split = encoding_name == kSplitName ? split_of_size(packed_size, width) : std::nullopt;
  if (split) {
    std::string error = rows(pool, "Q5_0", packed, split->panels_size, ids, n, y, width);
    for (int64_t i = 0; i < n; ++i) {
      if (ids[i] >= 0 && ids[i] < split->out) add_fine(*split, packed, ids[i], y + i * width);
    }
    return error;
  }
  const auto encoding = find_encoding(encoding_name);
  if (!encoding) return "encoding " + std::string(encoding_name) + " has no kernels.";
  const auto panel = panel_bytes(*encoding, width);
  if (n < 0 || !panel || *panel == 0 || packed_size % *panel != 0) {
    return std::to_string(packed_size) + " packed bytes are not a " + std::string(encoding_name) + " table of width " +
           std::to_string(width) + ".";
  }
  const RowsArgs args{packed, *panel, packed_size / *panel, ids, width, y};
  const int64_t count = task_count(n * *panel, kTaskBytes, std::min(n, 4 * pool.threads()));
  parallel_for(pool, count, [&](int64_t i) { kernels().rows[*encoding](args, n * i / count, n * (i + 1) / count); });
  return {};
}

}  // namespace gemwright
