/* What test_native.py measures of kernels.h. */

#include "kernels.h"

void map_exponential(const float *x, float *out, int n) {
    for (int i = 0; i < n; i += LANES) store(out + i, exponential(load(x + i)));
}

void map_gelu(const float *x, float *out, int n) {
    for (int i = 0; i < n; i += LANES) store(out + i, gelu(load(x + i)));
}

/* In place; n is a multiple of LANES. */
void map_softmax(float *scores, int n) {
    float divisor = exponentials(scores, n);
    for (int i = 0; i < n; i++) scores[i] /= divisor;
}

void map_norm(const float *gain, const float *shift, const float *x, float *out, int n) {
    normalise_row((Norm){gain, shift}, x, out, n);
}
