#include "kernels/attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"
#include "ops/ops.h"

namespace gemwright {
namespace {

constexpr int64_t kTaskWork = 1 << 14;     // multiply-adds per task: some microseconds
constexpr int64_t kMaxDirectQueries = 64;  // with more queries, keys are interleaved first
constexpr int64_t kExponentialCost = 16;   // multiply-adds that take as long as one exponential
// Up to this many new tokens are processed one by one, so that results equal those of separate calls to the last bit: a
// verified draft token must be the token that plain decoding gives.
constexpr int64_t kMaxSequentialTokens = 8;

// A buffer that each thread keeps per `Purpose`, because new memory is mapped and zeroed at each call.
template <int Purpose, class Number>
Number* scratch(int64_t count) {
  thread_local std::vector<Number> buffer;
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

// Keys and values of the new tokens [B, K, T, H], without padding, in the type of the cache.
template <class Number>
struct NewKV {
  Number *keys, *values;
};

// Prepares the queries, and the new keys and values in the type of the cache.
template <class Number>
NewKV<Number> prepare(Pool& pool, AttentionArgs& a) {
  const int64_t count = a.batch * a.tokens, size = count * a.kv_heads * a.width;
  const auto narrow = kernels().attention.of(Number{}).narrow;
  a.queries = scratch<0, float>((a.heads + a.kv_heads) * count * a.width);
  a.new_keys = a.queries + a.heads * count * a.width;
  Number* keys = scratch<1, Number>(2 * size);
  Number* values = keys + size;
  const int64_t shares =
      task_count(count * (a.heads + a.kv_heads) * a.width * 8, kTaskWork, std::min(count, 4 * pool.threads()));
  parallel_for(pool, shares, [&](int64_t i) {
    for (int64_t at = count * i / shares; at < count * (i + 1) / shares; ++at) {
      const int64_t sequence = at / a.tokens;
      kernels().attention.prepare(a, sequence, at % a.tokens);
      if (a.positions[at] < 0) continue;
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        const int64_t first = (sequence * a.kv_heads + head) * a.tokens;
        const int64_t to = (first + a.positions[at] - a.lengths[sequence]) * a.width;
        narrow(a.new_keys + (first + at % a.tokens) * a.width, a.width, keys + to);
        narrow(a.v + (at * a.kv_heads + head) * a.width, a.width, values + to);
      }
    }
  });
  return {keys, values};
}

int64_t count_new(const AttentionArgs& a, int64_t sequence) {
  const int32_t* positions = a.positions + sequence * a.tokens;
  return std::count_if(positions, positions + a.tokens, [](int32_t position) { return position >= 0; });
}

template <class Number>
AttendedKV<Number> attended_kv(const AttentionArgs& a, const KVCache<Number>& cache, const NewKV<Number>& new_kv,
                               int64_t sequence, int64_t head) {
  const int64_t length = a.lengths[sequence], pair = sequence * a.kv_heads + head;
  const int64_t begin = std::max<int64_t>({0, length - cache.slots, length - a.window + 1});
  const int64_t slot = begin % cache.slots, front = std::min(length - begin, cache.slots - slot);
  const Number* keys = cache.keys + pair * cache.slots * a.width;
  const Number* values = cache.values + pair * cache.slots * a.width;
  const int64_t added = count_new(a, sequence), first = pair * a.tokens * a.width;
  return {begin,
          length - begin + added,
          {{keys + slot * a.width, values + slot * a.width, front},
           {keys, values, length - begin - front},
           {new_kv.keys + first, new_kv.values + first, added}}};
}

// Stores the new tokens of one sequence and head; only the last `slots` if there are more.
template <class Number>
void insert(const AttentionArgs& a, const KVCache<Number>& cache, const NewKV<Number>& new_kv, int64_t sequence,
            int64_t head) {
  const int64_t pair = sequence * a.kv_heads + head, added = count_new(a, sequence);
  for (int64_t i = std::max<int64_t>(added - cache.slots, 0); i < added; ++i) {
    const int64_t to = (pair * cache.slots + (a.lengths[sequence] + i) % cache.slots) * a.width;
    const int64_t from = (pair * a.tokens + i) * a.width;
    std::memcpy(cache.keys + to, new_kv.keys + from, a.width * sizeof(Number));
    std::memcpy(cache.values + to, new_kv.values + from, a.width * sizeof(Number));
  }
}

// Attends with few queries. Each loop is divided by sequence and head and, if those are few, by keys, queries or columns.
template <class Number>
void attend_directly(Pool& pool, const AttentionArgs& a, const std::vector<AttendedKV<Number>>& attended,
                     int64_t total) {
  const CacheKernels<Number>& kernel = kernels().attention.of(Number{});
  const int64_t all = attended.size(), rows = a.tokens * a.group(), lanes = a.width / kLanes;
  const int64_t threads = (pool.threads() + all - 1) / all;
  float* weights = scratch<2, float>(all * rows * total);

  const int64_t shares = task_count(rows * total * a.width, kTaskWork, threads);
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares;
    float* scores = weights + pair * rows * total;
    for (const KVSpan<Number>& span : attended[pair].spans) {
      const int64_t first = span.count * share / shares, last = span.count * (share + 1) / shares;
      kernel.score(a.queries + pair * rows * a.width, rows, a.width, span.keys + first * a.width, last - first,
                   scores + first, total);
      scores += span.count;
    }
  });
  const int64_t cuts = task_count(rows * total * kExponentialCost, kTaskWork, std::min(threads, rows));
  parallel_for(pool, all * cuts, [&](int64_t i) {
    const int64_t pair = i / cuts, cut = i % cuts;
    kernels().attention.softmax_scores(a, attended[pair].begin, attended[pair].count, pair / a.kv_heads,
                                       rows * cut / cuts, rows * (cut + 1) / cuts, weights + pair * rows * total,
                                       total);
  });
  const int64_t stripes = std::min(shares, lanes);
  parallel_for(pool, all * stripes, [&](int64_t i) {
    const int64_t pair = i / stripes, stripe = i % stripes;
    kernel.sum_values(a, attended[pair], weights + pair * rows * total, total, pair / a.kv_heads, pair % a.kv_heads,
                      lanes * stripe / stripes * kLanes, lanes * (stripe + 1) / stripes * kLanes);
  });
}

// Attends with many queries: keys are first interleaved, sixteen to a panel, and eight queries share a panel.
template <class Number>
void attend_by_panels(Pool& pool, const AttentionArgs& a, const std::vector<AttendedKV<Number>>& attended,
                      int64_t longest) {
  const CacheKernels<Number>& kernel = kernels().attention.of(Number{});
  const int64_t all = attended.size(), rows = a.tokens * a.group();
  const int64_t panels = (longest + kLanes - 1) / kLanes, room = panels * kLanes * a.width;
  float* keys = scratch<2, float>(all * room);

  parallel_for(pool, all * panels, [&](int64_t i) {
    const int64_t pair = i / panels, first = i % panels * kLanes;
    const Number* found[kLanes];
    int64_t count = 0, at = 0;
    for (const KVSpan<Number>& span : attended[pair].spans) {
      for (int64_t j = std::max<int64_t>(first + count - at, 0); j < span.count && count < kLanes; ++j) {
        found[count++] = span.keys + j * a.width;
      }
      at += span.count;
    }
    if (count > 0) kernel.interleave_keys(found, count, a.width, keys + pair * room + first * a.width);
  });

  const int64_t tiles = (rows + kAttentionRows - 1) / kAttentionRows;
  const int64_t shares = task_count(rows * longest * a.width, kTaskWork, std::min(tiles, 4 * pool.threads()));
  parallel_for(pool, all * shares, [&](int64_t i) {
    const int64_t pair = i / shares, share = i % shares;
    float* scores = scratch<3, float>(kAttentionRows * panels * kLanes);
    kernel.attend(a, attended[pair], keys + pair * room, pair / a.kv_heads, pair % a.kv_heads,
                  tiles * share / shares * kAttentionRows,
                  std::min(tiles * (share + 1) / shares * kAttentionRows, rows), scores);
  });
}

std::string check(const AttentionArgs& a, int64_t slots) {
  if (a.width % kLanes != 0 || a.kv_heads < 1 || a.heads % a.kv_heads != 0 || slots < 1 || a.window < 1 ||
      a.rotated < 0 || a.rotated > a.width || a.rotated % 2 != 0) {
    return "attention: the sizes of heads, cache, window and rotation are inconsistent.";
  }
  for (int64_t sequence = 0; sequence < a.batch; ++sequence) {  // checked because they index the cache
    int64_t expected = a.lengths[sequence];
    if (expected < 0) return "attention: lengths must not be negative.";
    for (int64_t t = 0; t < a.tokens; ++t) {
      const int32_t position = a.positions[sequence * a.tokens + t];
      if (position >= 0 && position != expected++)
        return "attention: positions must continue from `lengths` without gaps.";
    }
  }
  return {};
}

// Attends with each new token in a call of its own.
template <class Number>
std::string attend_token_by_token(Pool& pool, const AttentionArgs& a, KVCache<Number> cache) {
  const int64_t wide = a.heads * a.width, narrow = a.kv_heads * a.width;
  std::vector<float> q(a.batch * wide), k(a.batch * narrow), v(k), rotation(a.batch * a.rotated), y(q);
  std::vector<int32_t> positions(a.batch), lengths(a.lengths, a.lengths + a.batch);
  AttentionArgs one = a;
  one.tokens = 1, one.q = q.data(), one.k = k.data(), one.v = v.data(), one.rotation = rotation.data();
  one.positions = positions.data(), one.lengths = lengths.data(), one.y = y.data();
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t sequence = 0; sequence < a.batch; ++sequence) {
      const int64_t at = sequence * a.tokens + t;
      std::copy_n(a.q + at * wide, wide, &q[sequence * wide]);
      std::copy_n(a.k + at * narrow, narrow, &k[sequence * narrow]);
      std::copy_n(a.v + at * narrow, narrow, &v[sequence * narrow]);
      std::copy_n(a.rotation + at * a.rotated, a.rotated, rotation.data() + sequence * a.rotated);
      positions[sequence] = a.positions[at];
    }
    std::string error = attention(pool, one, cache);
    if (!error.empty()) return error;
    for (int64_t sequence = 0; sequence < a.batch; ++sequence) {
      std::copy_n(&y[sequence * wide], wide, a.y + (sequence * a.tokens + t) * wide);
      lengths[sequence] += positions[sequence] >= 0;
    }
  }
  return {};
}

}  // namespace

template <class Number>
std::string attention(Pool& pool, AttentionArgs a, KVCache<Number> cache) {
  std::string error = check(a, cache.slots);
  if (!error.empty() || a.batch == 0 || a.tokens == 0) return error;
  if (1 < a.tokens && a.tokens <= kMaxSequentialTokens) return attend_token_by_token(pool, a, cache);
  if (a.tokens == 1) a.window = std::min(a.window, cache.slots);  // a single token takes one of the slots
  const NewKV<Number> new_kv = prepare<Number>(pool, a);
  const int64_t all = a.batch * a.kv_heads;
  std::vector<AttendedKV<Number>> attended(all);
  int64_t longest = 0;
  for (int64_t pair = 0; pair < all; ++pair) {
    attended[pair] = attended_kv(a, cache, new_kv, pair / a.kv_heads, pair % a.kv_heads);
    longest = std::max(longest, attended[pair].count);
  }
  if (a.tokens * a.group() <= kMaxDirectQueries) {
    attend_directly(pool, a, attended, longest);
  } else {
    attend_by_panels(pool, a, attended, longest);
  }
  parallel_for(pool, all, [&](int64_t i) { insert(a, cache, new_kv, i / a.kv_heads, i % a.kv_heads); });
  return {};
}

template std::string attention(Pool&, AttentionArgs, KVCache<float>);
template std::string attention(Pool&, AttentionArgs, KVCache<Bfloat16>);

}  // namespace gemwright
