/* Vectors and matrix products for one instruction set, chosen by the compiler's flags.
 *
 * Products take weights in int8 or int16, scaled per output, and activations in int16 or, where the
 * processor multiplies bytes without overflow, int8, scaled per row. Sums are exact in int32, so a
 * row of the result does not depend on the rows beside it. `native.py` packs the weights.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 6
#define HAS_BYTES 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LANES 8
#define TILE_ROWS 2
#define HAS_BYTES 0
#else
#error "the flags name no instruction set that this is written for, expected AVX512-VNNI or AVX2 with FMA and F16C"
#endif

#define BLOCKS 4
#define TILE (BLOCKS * LANES) /* outputs of one tile */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

INLINE floats load(const float *p) {
    floats v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, floats v) { memcpy(p, &v, sizeof v); }
INLINE floats all(float x) { return x - (floats){0}; }
INLINE ints all_ints(int32_t x) { return x - (ints){0}; }

/* Cached keys and values, in half precision. */
typedef uint16_t half;
#if LANES == 16
INLINE floats load_half(const half *p) { return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_half(half *p, floats v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
INLINE floats load_half(const half *p) { return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store_half(half *p, floats v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

INLINE float sum_of(floats v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE float largest_of(floats v) {
    float largest = v[0];
    for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

INLINE floats larger(floats a, floats b) {
    ints mask = a > b;
    return (floats)(((ints)a & mask) | ((ints)b & ~mask));
}

INLINE floats smaller(floats a, floats b) {
    ints mask = a < b;
    return (floats)(((ints)a & mask) | ((ints)b & ~mask));
}

INLINE int any_above(floats v, float x) {
#if LANES == 16
    return _mm512_cmp_ps_mask((__m512)v, (__m512)all(x), _CMP_GT_OQ) != 0;
#else
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)all(x), _CMP_GT_OQ)) != 0;
#endif
}

/* Round to nearest: adding 1.5 * 2^23 leaves the integer in the low bits. For |x| < 2^22. */
INLINE ints rounded(floats x) { return (ints)(x + 12582912.0f) - 0x4B400000; }

/* e^x for x <= 88, relative error 2e-7; 1e-38 for all x below -87. Cephes' polynomial. */
INLINE floats exponential(floats x) {
    x = larger(x, all(-87.0f));
    ints n = rounded(x * 1.44269504f);
    floats whole = __builtin_convertvector(n, floats);
    floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (floats)((ints)p + (n << 23));
}

/* x * P(X <= x) of the normal distribution; erf as in Abramowitz and Stegun 7.1.26, to 1.5e-7. */
INLINE floats gelu(floats x) {
    floats z = (floats)((ints)x & 0x7FFFFFFF) * 0.70710678f;
    floats t = 1.0f / (z * 0.3275911f + 1.0f);
    floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = (p * t + 0.254829592f) * t;
    floats upper = p * exponential(-z * z) * 0.5f; /* P(X > |x|) */
    ints negative = x < 0.0f;
    floats below = (floats)(((ints)upper & negative) | ((ints)(1.0f - upper) & ~negative));
    return x * below;
}

/* How a layer's weights are kept, and its activations with them. */
typedef enum {
    NARROW, /* weights int8, activations int16 */
    BYTES,  /* weights uint8 with 128 added, activations int8 */
    WIDE    /* weights int16, activations int16 */
} Format;

/* A linear layer, (outputs, inputs); outputs a multiple of TILE.
 *
 * weight: outputs/TILE tiles of inputs/n groups of TILE outputs of n weights each; n is 4 for BYTES,
 * else 2. limit: the largest quantised weight. scale, bias: (outputs,). */
typedef struct {
    int32_t outputs, inputs, format, limit;
    const void *weight;
    const float *scale, *bias;
} Linear;

typedef struct {
    const float *gain, *shift;
} Norm;

/* Rows of activations with a scale each; `values` holds int8 or int16 as the layer wants them. */
typedef struct {
    void *values;
    float *scale;
    int32_t *offset; /* 128 times the sum of a row's bytes, which the weights' 128 brings in */
} Quantised;

/* The largest quantised activation: the sum of all products has to fit in int32. */
INLINE float limit_of(const Linear *layer) {
    if (layer->format == BYTES) return 127.0f;
    float limit = floorf(2147483000.0f / ((float)layer->limit * (float)layer->inputs));
    return limit < 32767.0f ? limit : 32767.0f;
}

/* Quantise row `row` of `n` floats (a multiple of LANES) for `layer`. */
static void quantise_row(const Linear *layer, const float *x, Quantised *q, int row) {
    int n = layer->inputs;
    floats most = all(1e-12f);
    for (int i = 0; i < n; i += LANES) most = larger(most, (floats)((ints)load(x + i) & 0x7FFFFFFF));
    float scale = largest_of(most) / limit_of(layer), inverse = 1.0f / scale;
    q->scale[row] = scale;
    if (layer->format == BYTES) {
        int8_t *out = (int8_t *)q->values + (size_t)row * n;
        ints sum = {0};
        for (int i = 0; i < n; i += LANES) {
            ints v = rounded(load(x + i) * inverse);
            sum += v;
#if LANES == 16
            _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8((__m512i)v));
#else
            for (int j = 0; j < LANES; j++) out[i + j] = (int8_t)v[j];
#endif
        }
        int32_t total = 0;
        for (int i = 0; i < LANES; i++) total += sum[i];
        q->offset[row] = 128 * total;
        return;
    }
    int16_t *out = (int16_t *)q->values + (size_t)row * n;
    for (int i = 0; i < n; i += LANES) {
        ints v = rounded(load(x + i) * inverse);
#if LANES == 16
        _mm256_storeu_si256((__m256i *)(out + i), _mm512_cvtepi32_epi16((__m512i)v));
#else
        for (int j = 0; j < LANES; j++) out[i + j] = (int16_t)v[j];
#endif
    }
}

/* acc + the products of each lane's two weights with the two activations at `a` */
#if LANES == 16
typedef __m512i words;
INLINE words load_narrow(const int8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE words load_wide(const int16_t *p) { return _mm512_loadu_si512(p); }
INLINE ints dot_words(ints acc, words w, const int16_t *a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return (ints)_mm512_dpwssd_epi32((__m512i)acc, w, _mm512_set1_epi32(pair));
}
INLINE ints dot_bytes(ints acc, const uint8_t *w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return (ints)_mm512_dpbusd_epi32((__m512i)acc, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
}
#else
typedef __m256i words;
INLINE words load_narrow(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
INLINE words load_wide(const int16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE ints dot_words(ints acc, words w, const int16_t *a) {
    int32_t pair;
    memcpy(&pair, a, 4);
    return acc + (ints)_mm256_madd_epi16(w, _mm256_set1_epi32(pair));
}
#endif

typedef enum { SET, ADD } Mode;

/* One tile of `rows` results (a constant after inlining, at most TILE_ROWS): out (row, ld). */
INLINE void multiply_tile(const Linear *layer, int tile, const Quantised *q, int first, const int rows,
                          float *out, int ld, Mode mode) {
    ints acc[TILE_ROWS][BLOCKS];
    int n = layer->inputs;
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < BLOCKS; b++) acc[r][b] = (ints){0};
#if HAS_BYTES
    if (layer->format == BYTES) {
        const uint8_t *w = (const uint8_t *)layer->weight + (size_t)tile * TILE * n;
        const int8_t *a = (const int8_t *)q->values + (size_t)first * n;
        for (int r = 0; r < rows; r++)
            for (int b = 0; b < BLOCKS; b++) acc[r][b] = all_ints(-q->offset[first + r]);
        for (int k = 0; k < n; k += 4, w += 4 * TILE)
            for (int b = 0; b < BLOCKS; b++)
                for (int r = 0; r < rows; r++) acc[r][b] = dot_bytes(acc[r][b], w + b * 4 * LANES, a + (size_t)r * n + k);
    } else
#endif
    if (layer->format == WIDE) {
        const int16_t *w = (const int16_t *)layer->weight + (size_t)tile * TILE * n;
        const int16_t *a = (const int16_t *)q->values + (size_t)first * n;
        for (int k = 0; k < n; k += 2, w += 2 * TILE)
            for (int b = 0; b < BLOCKS; b++) {
                words weights = load_wide(w + b * 2 * LANES);
                for (int r = 0; r < rows; r++) acc[r][b] = dot_words(acc[r][b], weights, a + (size_t)r * n + k);
            }
    } else {
        const int8_t *w = (const int8_t *)layer->weight + (size_t)tile * TILE * n;
        const int16_t *a = (const int16_t *)q->values + (size_t)first * n;
        for (int k = 0; k < n; k += 2, w += 2 * TILE)
            for (int b = 0; b < BLOCKS; b++) {
                words weights = load_narrow(w + b * 2 * LANES);
                for (int r = 0; r < rows; r++) acc[r][b] = dot_words(acc[r][b], weights, a + (size_t)r * n + k);
            }
    }
    for (int b = 0; b < BLOCKS; b++) {
        int column = tile * TILE + b * LANES;
        floats scale = load(layer->scale + column), bias = load(layer->bias + column);
        for (int r = 0; r < rows; r++) {
            float *target = out + (size_t)(first + r) * ld + column;
            floats v = __builtin_convertvector(acc[r][b], floats) * (scale * q->scale[first + r]) + bias;
            store(target, mode == ADD ? load(target) + v : v);
        }
    }
}

/* Tiles [begin, end) of the product of `rows` quantised rows with a layer, into out (rows, ld). */
static void multiply(const Linear *layer, const Quantised *q, int rows, int begin, int end, float *out, int ld,
                     Mode mode) {
    for (int tile = begin; tile < end; tile++) {
        int row = 0;
        for (; row + TILE_ROWS <= rows; row += TILE_ROWS)
            multiply_tile(layer, tile, q, row, TILE_ROWS, out, ld, mode);
        switch (rows - row) {
#if TILE_ROWS > 2
            case 5: multiply_tile(layer, tile, q, row, 5, out, ld, mode); break;
            case 4: multiply_tile(layer, tile, q, row, 4, out, ld, mode); break;
            case 3: multiply_tile(layer, tile, q, row, 3, out, ld, mode); break;
            case 2: multiply_tile(layer, tile, q, row, 2, out, ld, mode); break;
#endif
            case 1: multiply_tile(layer, tile, q, row, 1, out, ld, mode); break;
        }
    }
}

static void normalise_row(Norm norm, const float *x, float *out, int n) {
    floats sum = {0}, squares = {0};
    for (int i = 0; i < n; i += LANES) sum += load(x + i);
    float mean = sum_of(sum) / (float)n;
    for (int i = 0; i < n; i += LANES) {
        floats d = load(x + i) - mean;
        squares += d * d;
    }
    float inverse = 1.0f / sqrtf(sum_of(squares) / (float)n + 1e-5f);
    for (int i = 0; i < n; i += LANES)
        store(out + i, (load(x + i) - mean) * inverse * load(norm.gain + i) + load(norm.shift + i));
}

/* Softmax of n scores (a multiple of LANES) in place, without the division: returns the divisor. */
static float exponentials(float *scores, int n) {
    floats most = all(-INFINITY), sum = {0};
    for (int i = 0; i < n; i += LANES) most = larger(most, load(scores + i));
    float largest = largest_of(most);
    for (int i = 0; i < n; i += LANES) {
        floats e = exponential(load(scores + i) - largest);
        store(scores + i, e);
        sum += e;
    }
    return sum_of(sum);
}
