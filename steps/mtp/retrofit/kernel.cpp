// The two loops of GPTQ that are too small for matrix products, with weight rows as vector lanes.
// Matrices are stored input-major, [column][row], so that a column's rows are adjacent.
// Compiled for the machine it runs on; a vector is one AVX-512, one AVX2 or two NEON registers.
// Wider ones than the machine has are taken apart at a great cost.
#include <cstdint>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int BLOCK = 128;
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }

// Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits below one. The
// compiler may not undo the addition: it is not told that reals would do (-ffast-math).
inline Vec nearest(Vec x) {
  const Vec magic = splat(12582912.0f);
  return x + magic - magic;
}

inline Vec clamp(Vec x, float lo, float hi) {
  x = x < splat(lo) ? splat(lo) : x;
  return x > splat(hi) ? splat(hi) : x;
}

// The value that BF16 would store, ties to even.
inline Vec to_bf16(Vec x) {
  Bits b = (Bits)x;
  b += 0x7fff + ((b >> 16) & 1);
  return (Vec)(b & ~0xffff);
}

inline Vec quantise(Vec t, Vec scale) { return clamp(nearest(t / scale), -8.0f, 7.0f); }

}  // namespace

extern "C" {

// For each row of one group the scale, out of base * candidates[c] rounded to BF16, with the
// least sum over columns k of weight[k] * (w - q * scale)^2. The first of equals wins.
// w [columns][rows] with the given stride, weight [columns], base and scale [rows].
void search(const float* w, int64_t stride, const float* weight, const float* base,
            const float* candidates, int64_t count, float* scale, int64_t columns, int64_t rows,
            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; r += LANES) {
    Vec origin = load(base + r), best = origin, least = splat(__builtin_inff());
    for (int64_t c = 0; c < count; c++) {
      Vec s = to_bf16(origin * splat(candidates[c])), sum = splat(0.0f);
      for (int64_t k = 0; k < columns; k++) {
        Vec x = load(w + k * stride + r), error = x - quantise(x, s) * s;
        sum += error * error * splat(weight[k]);
      }
      Bits better = sum < least;
      least = better ? sum : least;
      best = better ? s : best;
    }
    store(scale + r, best);
  }
}

// Quantises the columns of one block from the last to the first, each time feeding the error
// against the original weight forward to the columns still to come.
// t: targets, w: original weights, error and code: results, all [columns][rows];
// feed [columns][columns] with stride: row k holds the factors from column k to those before it;
// pivot [columns]; scale [groups][rows]; group [columns]: which scale a column uses;
// loss [rows] is added to.
void block(const float* t, int64_t t_stride, const float* w, int64_t w_stride, const float* feed,
           int64_t feed_stride, const float* pivot, const float* scale, int64_t scale_stride,
           const int32_t* group, float* error, int64_t error_stride, int8_t* code,
           int64_t code_stride, float* loss, int64_t columns, int64_t rows, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; r += LANES) {
    alignas(64) float target[BLOCK][LANES];
    for (int64_t k = 0; k < columns; k++) store(target[k], load(t + k * t_stride + r));
    Vec sum = load(loss + r);
    for (int64_t k = columns - 1; k >= 0; k--) {
      const Vec x = load(target[k]), s = load(scale + group[k] * scale_stride + r);
      const Vec q = quantise(x, s), stored = q * s, rest = x - stored;
      sum += rest * rest * splat(pivot[k]);
      const Vec e = load(w + k * w_stride + r) - stored;
      store(error + k * error_stride + r, e);
      for (int i = 0; i < LANES; i++) code[k * code_stride + r + i] = (int8_t)q[i];
      const float* factors = feed + k * feed_stride;
      for (int64_t j = 0; j < k; j++) store(target[j], load(target[j]) + e * splat(factors[j]));
    }
    store(loss + r, sum);
  }
}

}  // extern "C"
