// The largest products of a weight, and the products of a split weight.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "kernels.h"
#include "ops.h"
#include "packing.h"
#include "split.h"

namespace gemwright {
namespace {

constexpr int64_t kRows = 8;  // of activations at a time: a product of each with every row of the weight is kept
constexpr int64_t kPartRows = 4096;  // rows of the weight in a part of a loop
constexpr int64_t kGroupRows = 1024;  // among which the best of each lane is looked for
constexpr Around kPrecise{nullptr, nullptr, nullptr, nullptr, 0.0f, true};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
  float value;
  int32_t id;
  bool operator<(const Candidate& other) const {  // the larger first, the lower id where two are equal
    return value > other.value || (value == other.value && id < other.id);
  }
};

// Rows [first, first + count) of r.
FineRows fine_rows(const Split& split, const uint8_t* packed, int64_t first, int64_t count) {
  return {packed + split.fine + first * split.row_bytes, count, split.row_bytes, fine_scale_bytes(split.in),
          fine_groups(split.in)};
}

// Rows of activations as the rows of r meet them.
class Fine {
 public:
  Fine(const Split& split, const float* x, int64_t rows) : groups_(rows * fine_groups(split.in)) {
    for (int64_t row = 0; row < rows; ++row) {
      lengths_.push_back(fill(split, x + row * split.in, groups_.data() + row * fine_groups(split.in)));
    }
  }
  const FineGroup* groups() const { return groups_.data(); }
  float length(int64_t row) const { return lengths_[row]; }

 private:
  // A row, rounded to 8 bits, and what that leaves out, rounded too: as the panels meet them. Gives its length.
  static float fill(const Split& split, const float* x, FineGroup* groups) {
    const int64_t stripes = split.in / kStripe;
    std::vector<float> rest(split.in);
    kernels().row.rest(x, split.in, rest.data());
    std::vector<Activations> tile(stripes);
    float length = 0.0f;
    for (int half : {0, 1}) {
      const float* part = half == 0 ? x : rest.data();
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
void for_parts(Pool& pool, int64_t rows, const Body& body) {
  const int64_t count = (rows + kPartRows - 1) / kPartRows;
  parallel_for(pool, count, [&](int64_t i) { body(i, i * kPartRows, std::min((i + 1) * kPartRows, rows)); });
}

// Adds to the scores of some rows what their fine parts make.
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

// A score that at least `count` rows reach, as each of as many groups of rows holds one that does.
float threshold(Pool& pool, const float* y, int64_t limit, int64_t count) {
  const int64_t whole = limit / kLanes * kLanes;
  const int64_t groups = (whole + kGroupRows - 1) / kGroupRows;
  if (groups * kLanes < count) return -std::numeric_limits<float>::infinity();
  std::vector<float> tops(groups * kLanes, -std::numeric_limits<float>::infinity());
  for_parts(pool, whole, [&](int64_t, int64_t first, int64_t last) {
    for (; first < last; first += kGroupRows) {
      const int64_t some = std::min(kGroupRows, last - first);
      kernels().split.tops(y + first, some, &tops[first / kGroupRows * kLanes]);
    }
  });
  std::nth_element(tops.begin(), tops.begin() + count - 1, tops.end(), std::greater<>());
  return tops[count - 1];
}

// Moves the `count` best to the front, in order, and forgets the others.
void keep_best(std::vector<Candidate>& candidates, int64_t count) {
  const auto end = candidates.begin() + std::min<int64_t>(count, candidates.size());
  std::partial_sort(candidates.begin(), end, candidates.end());
  candidates.erase(end, candidates.end());
}

// A weight with fine rows, and the activations that meet them.
struct Refinement {
  const Split& split;
  const uint8_t* packed;
  const Fine& x;
};

// The `count` best rows, in order, of those whose score may reach `least`.
std::vector<Candidate> gather(Pool& pool, const Scores& scores, const Refinement* refinement, int64_t limit,
                              float least, int64_t count) {
  std::vector<std::vector<Candidate>> parts((limit + kPartRows - 1) / kPartRows);
  for_parts(pool, limit, [&](int64_t part, int64_t first, int64_t last) {
    int32_t found[kPartRows + kLanes];
    const int64_t some = kernels().split.find(scores, first, last, least, found);
    for (int64_t i = 0; i < some; ++i) parts[part].push_back({scores.y[found[i]], found[i]});
    if (refinement) refine(refinement->split, refinement->packed, refinement->x.groups(), parts[part]);
    keep_best(parts[part], count);
  });
  std::vector<Candidate> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  keep_best(all, count);
  return all;
}

// The products of one row of activations: with a refinement those of the panels alone.
void select(Pool& pool, const float* y, const Refinement* refinement, int64_t limit, int64_t count, float* values,
            int32_t* ids) {
  Scores scores{y, nullptr, 0.0f};
  std::vector<Candidate> best = gather(pool, scores, refinement, limit, threshold(pool, y, limit, count), count);
  if (refinement) {
    // These are exact now, so that what cannot reach the last of them is out.
    const float least = int64_t(best.size()) == count ? best.back().value : -std::numeric_limits<float>::infinity();
    scores.errors = reinterpret_cast<const float*>(refinement->packed + refinement->split.errors);
    scores.length = refinement->x.length(0);
    best = gather(pool, scores, refinement, limit, least, count);
  }
  for (int64_t i = 0; i < count; ++i) {  // where a score is no number there may be too few
    const bool filled = i < int64_t(best.size());
    values[i] = filled ? best[i].value : kNan;
    ids[i] = filled ? best[i].id : int32_t(i);
  }
}

}  // namespace

std::string split_product(Pool& pool, const float* x, int64_t rows, int64_t in, const Weight& weight) {
  const auto split = split_layout(weight.out, in);
  if (rows < 0 || !split || split->size != weight.packed_size) return "a split weight has the wrong size.";
  const std::string wrong =
      products(pool, false, x, rows, in, kPrecise, {{"Q5_0", weight.packed, split->panels_size, weight.out, weight.y}});
  if (!wrong.empty()) return wrong;
  const Fine fine(*split, x, rows);
  for_parts(pool, weight.out, [&](int64_t, int64_t first, int64_t last) {
    const FineRows part = fine_rows(*split, weight.packed, first, last - first);
    kernels().split.fine(part, fine.groups(), rows, weight.y + first, weight.out);
  });
  return {};
}

std::string top(Pool& pool, std::string_view encoding, const float* x, int64_t rows, int64_t in, const uint8_t* packed,
                int64_t packed_size, int64_t out, int64_t limit, int64_t count, float* values, int32_t* ids) {
  const auto split = encoding == kSplitName ? split_layout(out, in) : std::nullopt;
  if (encoding == kSplitName && (!split || split->size != packed_size)) return "a split weight has the wrong size.";
  if (count < 1 || count > limit || limit > out) return "top was asked for more products than there are.";
  thread_local std::vector<float> kept;  // fresh memory would be mapped and cleared at every call
  kept.resize(std::max<size_t>(kept.size(), std::min(rows, kRows) * out));
  float* const y = kept.data();
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t some = std::min(kRows, rows - first);
    const Weight coarse{split ? "Q5_0" : encoding, packed, split ? split->panels_size : packed_size, out, y};
    const std::string wrong = products(pool, false, x + first * in, some, in, kPrecise, {coarse});
    if (!wrong.empty()) return wrong;
    for (int64_t row = 0; row < some; ++row) {
      float* const best = values + (first + row) * count;
      int32_t* const where = ids + (first + row) * count;
      if (split) {
        const Fine fine(*split, x + (first + row) * in, 1);
        const Refinement refinement{*split, packed, fine};
        select(pool, y + row * out, &refinement, limit, count, best, where);
      } else {
        select(pool, y + row * out, nullptr, limit, count, best, where);
      }
    }
  }
  return {};
}

}  // namespace gemwright
