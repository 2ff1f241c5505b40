#include "ops.h"

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "packing.h"

namespace gemwright {
namespace {

// One part of a loop should take tens of microseconds: long beside the cost of handing it out, short beside
// the wait for a thread that was slow to begin.
constexpr int64_t kPartBytes = 1 << 17;

// A chunk of activation rows that stays in the second-level cache while many panels pass over it.
constexpr int64_t kChunkBytes = 1 << 18;

int64_t parts(int64_t work, int64_t most) {
  return std::clamp<int64_t>(work / kPartBytes, 1, std::max<int64_t>(most, 1));
}

// Scratch that a thread keeps: a fresh allocation of this size would be mapped and zeroed at every call.
void* scratch(int64_t bytes) {
  thread_local std::vector<Activations> buffer;
  const size_t needed = bytes / sizeof(Activations) + 1;
  if (buffer.size() < needed) buffer.resize(needed);
  return buffer.data();
}

}  // namespace

std::string matmul(Pool& pool, std::string_view encoding_name, bool exact, const float* x, int64_t rows, int64_t in,
                   const uint8_t* packed, int64_t packed_size, float* y, int64_t out) {
  const auto encoding = find_encoding(encoding_name);
  if (!encoding) return "matmul has no encoding " + std::string(encoding_name) + ".";
  if (rows < 0 || packed_bytes(*encoding, out, in) != packed_size) {
    return "matmul was given " + std::to_string(packed_size) + " packed bytes, which are no " +
           std::string(encoding_name) + " weight of shape [" + std::to_string(out) + ", " + std::to_string(in) + "].";
  }
  if (rows == 0 || out == 0) return {};
  const Kernels& table = kernels();
  const bool integers = !exact && table.matmul[*encoding] != nullptr;
  const auto prepare = integers ? table.prepare[*encoding] : table.prepare_exact;
  const auto multiply = integers ? table.matmul[*encoding] : table.exact[*encoding];
  const int64_t row_bytes = integers ? in / kStripe * int64_t{sizeof(Activations)} : in * int64_t{sizeof(float)};
  const MatmulArgs args{packed, *panel_bytes(*encoding, in), in, out, x, scratch(rows * row_bytes), y};

  const int64_t groups = (rows + kRowGroup - 1) / kRowGroup;
  const int64_t shares = parts(rows * row_bytes, std::min(groups, 4 * pool.threads()));
  parallel_for(pool, shares, [&](int64_t i) {
    const int64_t first = groups * i / shares * kRowGroup, last = std::min(groups * (i + 1) / shares * kRowGroup, rows);
    prepare(args, first, last - first);
  });

  const int64_t panels = (out + kLanes - 1) / kLanes;
  const int64_t group_bytes = std::max<int64_t>(kRowGroup * row_bytes, 1);
  const int64_t chunk = std::max<int64_t>(kChunkBytes / group_bytes, 1) * kRowGroup;
  const int64_t count = parts(packed_size * groups, std::min(panels, 8 * pool.threads()));
  parallel_for(pool, count, [&](int64_t i) {
    const int64_t first = panels * i / count, last = panels * (i + 1) / count;
    for (int64_t row = 0; row < rows; row += chunk) multiply(args, first, last, row, std::min(chunk, rows - row));
  });
  return {};
}

std::string rows(Pool& pool, std::string_view encoding_name, const uint8_t* packed, int64_t packed_size,
                 const int32_t* ids, int64_t n, float* y, int64_t width) {
  const auto encoding = find_encoding(encoding_name);
  if (!encoding) return "rows has no encoding " + std::string(encoding_name) + ".";
  const auto panel = panel_bytes(*encoding, width);
  if (n < 0 || !panel || *panel == 0 || packed_size % *panel != 0) {
    return "rows was given " + std::to_string(packed_size) + " packed bytes, which are no " +
           std::string(encoding_name) + " table of width " + std::to_string(width) + ".";
  }
  const RowsArgs args{packed, *panel, packed_size / *panel, ids, width, y};
  const int64_t count = parts(n * *panel, std::min(n, 4 * pool.threads()));
  parallel_for(pool, count, [&](int64_t i) { kernels().rows[*encoding](args, n * i / count, n * (i + 1) / count); });
  return {};
}

}  // namespace gemwright
