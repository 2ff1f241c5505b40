// The largest products with a weight, and all products with a split weight.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/kernels.h"
#include "ops/ops.h"
#include "ops/repack.h"
#include "ops/split.h"

namespace gemwright {
namespace {

constexpr int64_t kRows = 8;          // rows of activations at a time, each with a product for every row of the weight
constexpr int64_t kTaskRows = 4096;   // rows of the weight per task
constexpr int64_t kGroupRows = 1024;  // rows of the weight that share one maximum per lane
constexpr Fusion kSixteenBitActivations{nullptr, nullptr, nullptr, nullptr, 0.0f, 16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
  float value;
  int32_t id;
  bool operator<(const Candidate& other) const {  // larger first, then the lower id
    return value > other.value || (value == other.value && id < other.id);
  }
};

// Returns rows [first, first + count) of the remainders.
FineRows fine_rows(const Split& split, const uint8_t* packed, int64_t first, int64_t count) {
  return {packed + split.fine + first * split.row_bytes, count, split.row_bytes, fine_scale_bytes(split.in),
          fine_groups(split.in)};
}

// Rows of activations in the layout for multiplying remainders.
class FineActivations {
 public:
  FineActivations(const Split& split, const float* x, int64_t rows) : groups_(rows * fine_groups(split.in)) {
    for (int64_t row = 0; row < rows; ++row) {
      lengths_.push_back(fill(split, x + row * split.in, groups_.data() + row * fine_groups(split.in)));
    }
  }
  const FineGroup* groups() const { return groups_.data(); }
  float length(int64_t row) const { return lengths_[row]; }

 private:
  // Writes a row rounded to 8 bits and its rounding error, rounded too, as for the panels. Returns the row's length.
  static float fill(const Split& split, const float* x, FineGroup* groups) {
    const int64_t stripes = split.in / kStripe;
    std::vector<float> error(split.in);
    kernels().row.rounding_error(x, split.in, error.data());
    std::vector<Activations> tile(stripes);
    float length = 0.0f;
    for (int half : {0, 1}) {
      const float* part = half == 0 ? x : error.data();
      kernels().prepare[kQ5_0]({nullptr, 0, split.in, 0, part, tile.data(), nullptr, false}, 0, 1);
      double squares = 0.0;
      for (int64_t s = 0; s < stripes; ++s) {
        const float scale = tile[s].scale;
        FineGroup& group = groups[s / 4];
        group.scales[half][s % 4] = scale;
        int32_t sum = 0;
        for (int i = 0; i < kStripe; ++i) {
          const int32_t q = tile[s].q[i], byte = fine_byte(s % 4, i);
          group.q[half][i / 4 % 2][byte] = int8_t(q);
          group.start[half][byte / 4] -= 4 * q;
          sum += q * q;
        }
        squares += double(scale) * scale * sum;
      }
      length += float(std::sqrt(squares) * 1.000001);
    }
    return length * 1.000001f;
  }

  std::vector<FineGroup> groups_;
  std::vector<float> lengths_;
};

template <class Body>
void for_row_ranges(Pool& pool, int64_t rows, const Body& body) {
  const int64_t count = (rows + kTaskRows - 1) / kTaskRows;
  parallel_for(pool, count, [&](int64_t i) { body(i, i * kTaskRows, std::min((i + 1) * kTaskRows, rows)); });
}

// Adds the products of the remainders to the scores of some rows.
void refine(const Split& split, const uint8_t* packed, const FineGroup* x, std::vector<Candidate>& rows) {
  constexpr size_t kAhead = 4;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i + kAhead < rows.size()) {
      const uint8_t* next = fine_rows(split, packed, rows[i + kAhead].id, 1).first;
      for (int64_t line = 0; line < split.row_bytes; line += 64) __builtin_prefetch(next + line);
    }
    kernels().split.fine(fine_rows(split, packed, rows[i].id, 1), x, 1, &rows[i].value, 0);
  }
}

// Returns a score that at least `count` rows reach: the `count`-th largest of the maxima of disjoint groups of rows.
float threshold(Pool& pool, const float* y, int64_t limit, int64_t count) {
  const int64_t whole = limit / kLanes * kLanes;
  const int64_t groups = (whole + kGroupRows - 1) / kGroupRows;
  if (groups * kLanes < count) return -std::numeric_limits<float>::infinity();
  std::vector<float> maxima(groups * kLanes, -std::numeric_limits<float>::infinity());
  for_row_ranges(pool, whole, [&](int64_t, int64_t first, int64_t last) {
    for (; first < last; first += kGroupRows) {
      const int64_t some = std::min(kGroupRows, last - first);
      kernels().split.lane_maxima(y + first, some, &maxima[first / kGroupRows * kLanes]);
    }
  });
  std::nth_element(maxima.begin(), maxima.begin() + count - 1, maxima.end(), std::greater<>());
  return maxima[count - 1];
}

// Keeps the `count` best, in order.
void keep_best(std::vector<Candidate>& candidates, int64_t count) {
  const auto end = candidates.begin() + std::min<int64_t>(count, candidates.size());
  std::partial_sort(candidates.begin(), end, candidates.end());
  candidates.erase(end, candidates.end());
}

// A split weight and the activations for its remainders.
struct Refinement {
  const Split& split;
  const uint8_t* packed;
  const FineActivations& x;
};

// Returns the `count` best rows, in order, of those whose score may reach `threshold`.
std::vector<Candidate> best_rows(Pool& pool, const Scores& scores, const Refinement* refinement, int64_t limit,
                                 float threshold, int64_t count) {
  std::vector<std::vector<Candidate>> parts((limit + kTaskRows - 1) / kTaskRows);
  for_row_ranges(pool, limit, [&](int64_t part, int64_t first, int64_t last) {
    int32_t found[kTaskRows + kLanes];
    const int64_t some = kernels().split.find_candidates(scores, first, last, threshold, found);
    for (int64_t i = 0; i < some; ++i) parts[part].push_back({scores.y[found[i]], found[i]});
    if (refinement) refine(refinement->split, refinement->packed, refinement->x.groups(), parts[part]);
    keep_best(parts[part], count);
  });
  std::vector<Candidate> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  keep_best(all, count);
  return all;
}

// Selects the largest products of one row of activations; with a refinement, `y` has those of the panels alone.
void select_top(Pool& pool, const float* y, const Refinement* refinement, int64_t limit, int64_t count, float* values,
                int32_t* ids) {
  Scores scores{y, nullptr, 0.0f};
  std::vector<Candidate> best = best_rows(pool, scores, refinement, limit, threshold(pool, y, limit, count), count);
  if (refinement) {
    // These scores are exact now: a row that cannot reach the last of them is out.
    const float threshold = int64_t(best.size()) == count ? best.back().value : -std::numeric_limits<float>::infinity();
    scores.errors = reinterpret_cast<const float*>(refinement->packed + refinement->split.errors);
    scores.length = refinement->x.length(0);
    best = best_rows(pool, scores, refinement, limit, threshold, count);
  }
  for (int64_t i = 0; i < count; ++i) {  // NaN scores may leave too few
    const bool filled = i < int64_t(best.size());
    values[i] = filled ? best[i].value : kNan;
    ids[i] = filled ? best[i].id : int32_t(i);
  }
}

}  // namespace

std::string split_product(Pool& pool, const float* x, int64_t rows, int64_t in, const Weight& weight) {
  const auto split = split_layout(weight.out, in);
  if (rows < 0 || !split || split->size != weight.packed_size)
    return "a split weight has the wrong size; make it with repack().";
  std::string error = fused_linear(pool, false, x, rows, in, kSixteenBitActivations,
                                   {{"Q5_0", weight.packed, split->panels_size, weight.out, weight.y}});
  if (!error.empty()) return error;
  const FineActivations fine(*split, x, rows);
  for_row_ranges(pool, weight.out, [&](int64_t, int64_t first, int64_t last) {
    const FineRows part = fine_rows(*split, weight.packed, first, last - first);
    kernels().split.fine(part, fine.groups(), rows, weight.y + first, weight.out);
  });
  return {};
}

std::string top(Pool& pool, std::string_view encoding, const float* x, int64_t rows, int64_t in, const uint8_t* packed,
                int64_t packed_size, int64_t out, int64_t limit, int64_t count, float* values, int32_t* ids) {
  const auto split = encoding == kSplitName ? split_layout(out, in) : std::nullopt;
  if (encoding == kSplitName && (!split || split->size != packed_size))
    return "a split weight has the wrong size; make it with repack().";
  if (count < 1 || count > limit || limit > out) return "top needs 1 <= count <= limit <= out.";
  thread_local std::vector<float> buffer;  // kept, because new memory is mapped and zeroed at each call
  buffer.resize(std::max<size_t>(buffer.size(), std::min(rows, kRows) * out));
  float* const y = buffer.data();
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t some = std::min(kRows, rows - first);
    const Weight coarse{split ? "Q5_0" : encoding, packed, split ? split->panels_size : packed_size, out, y};
    std::string error = fused_linear(pool, false, x + first * in, some, in, kSixteenBitActivations, {coarse});
    if (!error.empty()) return error;
    for (int64_t row = 0; row < some; ++row) {
      float* const best = values + (first + row) * count;
      int32_t* const best_ids = ids + (first + row) * count;
      if (split) {
        const FineActivations fine(*split, x + (first + row) * in, 1);
        const Refinement refinement{*split, packed, fine};
        select_top(pool, y + row * out, &refinement, limit, count, best, best_ids);
      } else {
        select_top(pool, y + row * out, nullptr, limit, count, best, best_ids);
      }
    }
  }
  return {};
}

}  // namespace gemwright
