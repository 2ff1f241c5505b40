// The largest products of a weight, and the products of a split weight.
#include <algorithm>
#include <array>
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

// 8 bits of a row of activations as the fine rows meet them: the same that the panels meet.
class FinePart {
 public:
  FinePart(const Split& split, const float* x)
      : scale_bytes_(fine_scale_bytes(split.in)),
        q_(fine_groups(split.in) * 64),
        start_(fine_groups(split.in) * kLanes),
        scales_(fine_scales(split.in)) {
    const int64_t stripes = split.in / kStripe;
    std::vector<Activations> tile(stripes);
    kernels().prepare[kQ5_0]({nullptr, 0, split.in, 0, x, tile.data(), nullptr, false}, 0, 1);
    double squares = 0.0;
    for (int64_t s = 0; s < stripes; ++s) {
      std::copy(tile[s].q, tile[s].q + kStripe, &q_[s * kStripe]);
      scales_[s] = tile[s].scale;
      int32_t sum = 0;
      for (const int8_t q : tile[s].q) sum += q * q;
      squares += double(tile[s].scale) * tile[s].scale * sum;
    }
    for (size_t i = 0; i < start_.size(); ++i) {
      start_[i] = -4 * (q_[4 * i] + q_[4 * i + 1] + q_[4 * i + 2] + q_[4 * i + 3]);
    }
    length_ = float(std::sqrt(squares) * 1.000001);
  }
  float length() const { return length_; }
  FineInput input() const {
    return {int64_t(q_.size()) / 64, scale_bytes_, q_.data(), start_.data(), scales_.data(), int64_t(scales_.size())};
  }

 private:
  int64_t scale_bytes_;
  std::vector<int8_t> q_;
  std::vector<int32_t> start_;
  std::vector<float> scales_;
  float length_;
};

// A row of activations, and what rounding it to 8 bits leaves out.
class Fine {
 public:
  Fine(const Split& split, const float* x) : first_(split, x), second_(split, rest(x, split.in).data()) {}
  std::array<FineInput, 2> parts() const { return {first_.input(), second_.input()}; }
  float length() const { return (first_.length() + second_.length()) * 1.000001f; }

 private:
  static std::vector<float> rest(const float* x, int64_t in) {
    std::vector<float> y(in);
    kernels().row.rest(x, in, y.data());
    return y;
  }
  FinePart first_, second_;
};

template <class Body>
void for_parts(Pool& pool, int64_t rows, const Body& body) {
  const int64_t count = (rows + kPartRows - 1) / kPartRows;
  parallel_for(pool, count, [&](int64_t i) { body(i, i * kPartRows, std::min((i + 1) * kPartRows, rows)); });
}

// Adds to the scores of some rows what their fine parts make.
void refine(const Split& split, const uint8_t* packed, const Fine& x, std::vector<Candidate>& rows) {
  constexpr size_t kAhead = 4;
  const uint8_t* fine = packed + split.fine;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i + kAhead < rows.size()) {
      const uint8_t* next = fine + rows[i + kAhead].id * split.row_bytes;
      for (int64_t line = 0; line < split.row_bytes; line += 64) __builtin_prefetch(next + line);
    }
    for (const FineInput& part : x.parts()) {
      kernels().split.fine(fine + rows[i].id * split.row_bytes, &part, 1, &rows[i].value, 0);
    }
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
    if (refinement) refine(refinement->split, refinement->packed, refinement->x, parts[part]);
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
    scores.length = refinement->x.length();
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
  std::vector<Fine> fine;
  for (int64_t row = 0; row < rows; ++row) fine.emplace_back(*split, x + row * in);
  std::vector<FineInput> inputs[2];
  for (const Fine& row : fine) {
    for (int part : {0, 1}) inputs[part].push_back(row.parts()[part]);
  }
  for_parts(pool, weight.out, [&](int64_t, int64_t first, int64_t last) {
    for (; first < last; ++first) {
      const uint8_t* row = weight.packed + split->fine + first * split->row_bytes;
      for (const auto& part : inputs) kernels().split.fine(row, part.data(), rows, weight.y + first, weight.out);
    }
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
        const Fine fine(*split, x + (first + row) * in);
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
