// GroupNorm, LayerNorm and their gradients, and softmax over the last axis.
//
// Statistics take two passes (the mean, then the sum of squares about it) over data that the first
// pass left in the cache, in blocks of a few thousand elements whose sums are added in f64.
// With xhat = (x - mean) rstd and N elements normalised together,
//   dx = rstd (g dy - (sum(g dy) + xhat sum(g dy xhat)) / N),  dgamma = sum(dy xhat),
//   dbeta = sum(dy);
// sums over images go in their order, sums over rows in a fixed number of parts.
#include "codegen/cpu/norm_load.h"
#include "codegen/cpu/sums.h"

enum { ROW_BLOCK = 16, GROUPS_FOR_THREADS = 16 };

// sum of (x - mean)^2
static double squares_of(const PvReal *x, PvReal mean, int64_t count)
{
    double sum = 0;
    PvVec middle = vec_all(mean);
    for (int64_t first = 0; first < count; first += SUM_BLOCK) {
        int64_t end = pv_least(first + SUM_BLOCK, count), i = first;
        PvVec part[4] = {{0}};
        for (; i + 4 * PV_WIDTH <= end; i += 4 * PV_WIDTH) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                PvVec away = vec_load(x + i + j * PV_WIDTH) - middle;
                part[j] += away * away;
            }
        }
        for (; i + PV_WIDTH <= end; i += PV_WIDTH) {
            PvVec away = vec_load(x + i) - middle;
            part[0] += away * away;
        }
        double rest = 0;
        for (; i < end; i++)
            rest += (double)((x[i] - mean) * (x[i] - mean));
        sum += lanes_sum((part[0] + part[1]) + (part[2] + part[3])) + rest;
    }
    return sum;
}

// *plain = sum of dy, *product = sum of dy (x - mean), in one pass
static void grad_sums(const PvReal *dy, const PvReal *x, PvReal mean, int64_t count, double *plain,
                      double *product)
{
    PvVec middle = vec_all(mean);
    *plain = *product = 0;
    for (int64_t first = 0; first < count; first += SUM_BLOCK) {
        int64_t end = pv_least(first + SUM_BLOCK, count), i = first;
        PvVec part[2] = {{0}}, both[2] = {{0}};
        for (; i + 2 * PV_WIDTH <= end; i += 2 * PV_WIDTH) {
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                PvVec up = vec_load(dy + i + j * PV_WIDTH);
                part[j] += up;
                both[j] += up * (vec_load(x + i + j * PV_WIDTH) - middle);
            }
        }
        for (; i < end; i += PV_WIDTH) {
            int64_t left = pv_least(PV_WIDTH, end - i);
            PvVec up = vec_load_part(dy + i, left);
            part[0] += up;
            both[0] += up * (vec_load_part(x + i, left) - middle);
        }
        *plain += lanes_sum(part[0] + part[1]);
        *product += lanes_sum(both[0] + both[1]);
    }
}

static void activate(PvReal *y, int64_t count, PvAct act)
{
    switch (act) {
    case PV_ACT_NONE:
        break;
    case PV_ACT_SILU:
        for (int64_t i = 0; i < count; i++)
            y[i] = pv_silu(y[i]);
        break;
    case PV_ACT_GELU:
        for (int64_t i = 0; i < count; i++)
            y[i] = pv_gelu(y[i]);
        break;
    case PV_ACT_RELU:
        for (int64_t i = 0; i < count; i++)
            y[i] = pv_relu(y[i]);
        break;
    }
}

// ---- GroupNorm ----

// Mean and 1 / sqrt(variance + eps) of `channels` channels, x_channel apart.
static void group_statistics(const PvReal *x, int64_t x_channel, int64_t channels,
                             int64_t positions, PvReal eps, PvReal *mean, PvReal *rstd)
{
    // channels that follow one another are one run
    int64_t count = channels * positions, runs = x_channel == positions ? 1 : channels;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < runs; i++)
        sum += sum_of(x + i * x_channel, count / runs);
    *mean = (PvReal)(sum / (double)count);
    for (int64_t i = 0; i < runs; i++)
        squares += squares_of(x + i * x_channel, *mean, count / runs);
    *rstd = (PvReal)(1 / sqrt(squares / (double)count + (double)eps));
}

static void store_statistics(int64_t mean_at, int64_t rstd_at, int64_t number, PvReal mean,
                             PvReal rstd)
{
    if (mean_at)
        ((PvReal *)mean_at)[number] = mean;
    if (rstd_at)
        ((PvReal *)rstd_at)[number] = rstd;
}

static void group_norm_task(const GroupNormArgs *args, int64_t image, int64_t group)
{
    int64_t channels = args->c / args->groups;
    const PvReal *x =
        (const PvReal *)args->x + image * args->x_image + group * channels * args->x_channel;
    PvReal *y = (PvReal *)args->y + image * args->y_image + group * channels * args->y_channel;
    const PvReal *gamma = (const PvReal *)args->gamma, *beta = (const PvReal *)args->beta;
    const PvReal *scale = (const PvReal *)args->scale, *shift = (const PvReal *)args->shift;
    PvReal mean, rstd;
    group_statistics(x, args->x_channel, channels, args->positions, pv_real(args->eps), &mean,
                     &rstd);
    store_statistics(args->mean, args->rstd, image * args->groups + group, mean, rstd);
    for (int64_t i = 0; i < channels; i++) {
        int64_t c = group * channels + i, at = image * args->mod_image + c;
        PvReal factor = gamma ? rstd * gamma[c] : rstd, offset = beta ? beta[c] : 0;
        if (scale) {
            factor *= 1 + scale[at];
            offset *= 1 + scale[at];
        }
        if (shift)
            offset += shift[at];
        const PvReal *from = x + i * args->x_channel;
        PvReal *to = y + i * args->y_channel;
        for (int64_t first = 0; first < args->positions; first += SUM_BLOCK) {
            int64_t end = pv_least(first + SUM_BLOCK, args->positions);
            for (int64_t j = first; j < end; j++)
                to[j] = pv_fma(from[j] - mean, factor, offset);
            activate(to + first, end - first, (PvAct)args->act);
        }
    }
}

// The part of a table that belongs to a group of an image.
static void put_table(const NormStats *stats, int64_t c, int64_t image, int64_t group, PvReal mean,
                      PvReal rstd)
{
    int64_t channels = c / stats->groups, first = group * channels;
    const PvReal *gamma = (const PvReal *)stats->gamma, *beta = (const PvReal *)stats->beta;
    const PvReal *scale = (const PvReal *)stats->scale, *shift = (const PvReal *)stats->shift;
    PvReal *a = (PvReal *)stats->table + image * 2 * c, *d = a + c;
    store_statistics(stats->mean, stats->rstd, image * stats->groups + group, mean, rstd);
    for (int64_t i = first; i < first + channels; i++) {
        int64_t at = image * stats->mod_image + i;
        PvReal factor = rstd * gamma[i], offset = pv_fma(-mean, factor, beta[i]);
        if (scale) {
            factor *= 1 + scale[at];
            offset = pv_fma(offset, 1 + scale[at], shift[at]);
        }
        a[i] = factor;
        d[i] = offset;
    }
}

static void norm_table_task(const NormStats *stats, const NormSource *x, int64_t image,
                            int64_t group)
{
    PvReal mean, rstd;
    int64_t channels = x->c / stats->groups;
    group_statistics(x->at + image * x->image + group * channels * x->channel, x->channel, channels,
                     x->positions, pv_real(stats->eps), &mean, &rstd);
    put_table(stats, x->c, image, group, mean, rstd);
}

static void moments_task(const NormStats *stats, const NormSource *x, int64_t image, int64_t c)
{
    const PvReal *from = x->at + image * x->image + c * x->channel;
    PvReal *to = (PvReal *)stats->moments + image * stats->moments_image + c;
    to[0] = (PvReal)(sum_of(from, x->positions) / (double)x->positions);
    to[stats->moments_shift] = (PvReal)squares_of(from, to[0], x->positions);
}

void pv_norm_stats(const PvRun *run, const NormStats *stats, const NormSource *x)
{
    int64_t tables = stats->table ? x->images * stats->groups : 0;
    int64_t moments = stats->moments ? x->images * x->c : 0;
#pragma omp parallel num_threads(run->threads) if (tables + moments > 1)
    {
#pragma omp for schedule(static) nowait
        for (int64_t task = 0; task < tables; task++)
            norm_table_task(stats, x, task / stats->groups, task % stats->groups);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < moments; task++)
            moments_task(stats, x, task / x->c, task % x->c);
    }
}

// A group of an image from the moments of its channels in all parts.
static void parts_table_task(const GroupNormArgs *args, const NormStats *stats, int64_t image,
                             int64_t group)
{
    int64_t channels = args->c / args->groups, positions = 0;
    const PvReal *x = (const PvReal *)args->x + image * args->x_image + group * channels;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < args->parts; i++) {
        positions += args->count[i];
        for (int64_t c = 0; c < channels; c++)
            sum += (double)x[i * args->x_part + c] * (double)args->count[i];
    }
    double count = (double)(positions * channels), mean = sum / count;
    for (int64_t i = 0; i < args->parts; i++) {
        for (int64_t c = 0; c < channels; c++) {
            const PvReal *at = x + i * args->x_part + c;
            double away = (double)at[0] - mean;
            squares += (double)at[args->x_position] + (double)args->count[i] * away * away;
        }
    }
    put_table(stats, args->c, image, group, (PvReal)mean,
              (PvReal)(1 / sqrt(squares / count + (double)pv_real(args->eps))));
}

static void group_norm_one(const PvRun *run, const GroupNormArgs *args)
{
    if (args->table || args->moments) {
        NormStats stats = {.table = args->table,
                           .mean = args->mean,
                           .rstd = args->rstd,
                           .gamma = args->gamma,
                           .beta = args->beta,
                           .scale = args->scale,
                           .shift = args->shift,
                           .mod_image = args->mod_image,
                           .groups = args->groups,
                           .eps = args->eps,
                           .moments = args->moments,
                           .moments_image = args->moments_image,
                           .moments_shift = args->moments_shift};
        NormSource x = {(const PvReal *)args->x, args->images,  args->c,
                        args->positions,         args->x_image, args->x_channel};
        if (args->parts == 0)
            pv_norm_stats(run, &stats, &x);
        for (int64_t i = 0; args->parts > 0 && i < args->images * args->groups; i++)
            parts_table_task(args, &stats, i / args->groups, i % args->groups);
        return;
    }
    int64_t tasks = args->images * args->groups;
#pragma omp parallel for schedule(static) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++)
        group_norm_task(args, task / args->groups, task % args->groups);
}

void pv_group_norm(const PvRun *run, const int64_t *raw)
{
    const GroupNormArgs *args = (const GroupNormArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        group_norm_one(run, &args[i]);
}

// Element c of what a sum begins with; `added` is an address or 0.
static PvReal start_of(int64_t added, int64_t c)
{
    return added ? ((const PvReal *)added)[c] : 0;
}

// Sums of channel c of an image: *beta = sum dy, *gamma = sum dy xhat.
static void channel_sums(const GroupNormGradArgs *args, int64_t image, int64_t c, double *beta,
                         double *gamma)
{
    int64_t stat = image * args->groups + c / (args->c / args->groups);
    grad_sums((const PvReal *)args->dy + image * args->dy_image + c * args->dy_channel,
              (const PvReal *)args->x + image * args->x_image + c * args->x_channel,
              ((const PvReal *)args->mean)[stat], args->positions, beta, gamma);
    *gamma *= (double)((const PvReal *)args->rstd)[stat];
}

// dx of one group of one image. With `collect`, adds to dgamma and dbeta of its channels.
static void group_norm_grad_task(const GroupNormGradArgs *args, int64_t image, int64_t group,
                                 bool collect)
{
    int64_t channels = args->c / args->groups, positions = args->positions;
    const PvReal *gamma = (const PvReal *)args->gamma;
    PvReal *dgamma = (PvReal *)args->dgamma, *dbeta = (PvReal *)args->dbeta;
    PvReal mean = ((const PvReal *)args->mean)[image * args->groups + group];
    PvReal rstd = ((const PvReal *)args->rstd)[image * args->groups + group];
    double plain = 0, product = 0, count = (double)(channels * positions);
    for (int64_t c = group * channels; c < (group + 1) * channels; c++) {
        double beta_sum, gamma_sum;
        channel_sums(args, image, c, &beta_sum, &gamma_sum);
        plain += (gamma ? (double)gamma[c] : 1) * beta_sum;
        product += (gamma ? (double)gamma[c] : 1) * gamma_sum;
        if (collect) {
            dbeta[c] = (image ? dbeta[c] : start_of(args->dbeta_added, c)) + (PvReal)beta_sum;
            dgamma[c] = (image ? dgamma[c] : start_of(args->dgamma_added, c)) + (PvReal)gamma_sum;
        }
    }
    // dx = dy up + (x - mean) along + level
    PvReal along = (PvReal)(-product / count) * rstd * rstd;
    PvReal level = (PvReal)(-plain / count) * rstd;
    for (int64_t c = group * channels; c < (group + 1) * channels; c++) {
        const PvReal *dy =
            (const PvReal *)args->dy + image * args->dy_image + c * args->dy_channel;
        const PvReal *x = (const PvReal *)args->x + image * args->x_image + c * args->x_channel;
        PvReal *dx = (PvReal *)args->dx + image * args->dx_image + c * args->dx_channel;
        PvReal up = gamma ? rstd * gamma[c] : rstd;
        for (int64_t i = 0; i < positions; i++)
            dx[i] = pv_fma(dy[i], up, pv_fma(x[i] - mean, along, level));
    }
}

static void group_norm_grad_one(const PvRun *run, const GroupNormGradArgs *args)
{
    bool collect = args->dgamma && args->dbeta;
    // Few groups: all (image, group) at once, and the sums of channels a second time. Which way is
    // taken must not depend on the number of threads: bits might.
    if (collect && (args->images == 1 || args->groups >= GROUPS_FOR_THREADS)) {
#pragma omp parallel for schedule(static) num_threads(run->threads) if (args->groups > 1)
        for (int64_t group = 0; group < args->groups; group++) {
            for (int64_t image = 0; image < args->images; image++)
                group_norm_grad_task(args, image, group, true);
        }
        return;
    }
    // dx may take the place of dy or x, so the sums come first.
#pragma omp parallel for schedule(static) num_threads(run->threads)
    for (int64_t c = 0; c < (collect ? args->c : 0); c++) {
        PvReal gamma = start_of(args->dgamma_added, c), beta = start_of(args->dbeta_added, c);
        for (int64_t image = 0; image < args->images; image++) {
            double beta_sum, gamma_sum;
            channel_sums(args, image, c, &beta_sum, &gamma_sum);
            beta += (PvReal)beta_sum;
            gamma += (PvReal)gamma_sum;
        }
        ((PvReal *)args->dgamma)[c] = gamma;
        ((PvReal *)args->dbeta)[c] = beta;
    }
    int64_t tasks = args->images * args->groups;
#pragma omp parallel for schedule(static) num_threads(run->threads) if (tasks > 1)
    for (int64_t task = 0; task < tasks; task++)
        group_norm_grad_task(args, task / args->groups, task % args->groups, false);
}

void pv_group_norm_grad(const PvRun *run, const int64_t *raw)
{
    const GroupNormGradArgs *args = (const GroupNormGradArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        group_norm_grad_one(run, &args[i]);
}

// ---- LayerNorm ----

static void layer_norm_row(const LayerNormArgs *args, int64_t row)
{
    int64_t count = args->c;
    const PvReal *x = (const PvReal *)args->x + row * count;
    const PvReal *gamma = (const PvReal *)args->gamma, *beta = (const PvReal *)args->beta;
    PvReal *y = (PvReal *)args->y + row * count;
    PvReal mean = (PvReal)(sum_of(x, count) / (double)count);
    double variance = squares_of(x, mean, count) / (double)count;
    PvReal rstd = (PvReal)(1 / sqrt(variance + (double)pv_real(args->eps)));
    if (args->mean)
        ((PvReal *)args->mean)[row] = mean;
    if (args->rstd)
        ((PvReal *)args->rstd)[row] = rstd;
    if (gamma && beta) {
        for (int64_t i = 0; i < count; i++)
            y[i] = pv_fma((x[i] - mean) * rstd, gamma[i], beta[i]);
    } else {
        for (int64_t i = 0; i < count; i++)
            y[i] = (x[i] - mean) * rstd;
        for (int64_t i = 0; gamma && i < count; i++)
            y[i] *= gamma[i];
        for (int64_t i = 0; beta && i < count; i++)
            y[i] += beta[i];
    }
    activate(y, count, (PvAct)args->act);
}

static void layer_norm_one(const PvRun *run, const LayerNormArgs *args)
{
#pragma omp parallel for schedule(static, ROW_BLOCK)                                               \
    num_threads(run->threads) if (args->rows > ROW_BLOCK)
    for (int64_t row = 0; row < args->rows; row++)
        layer_norm_row(args, row);
}

void pv_layer_norm(const PvRun *run, const int64_t *raw)
{
    const LayerNormArgs *args = (const LayerNormArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        layer_norm_one(run, &args[i]);
}

// One row: dx, and what it adds to dgamma and dbeta (NULL: not wanted).
static void layer_norm_grad_row(const LayerNormGradArgs *args, int64_t row, PvReal *dgamma,
                                PvReal *dbeta)
{
    int64_t count = args->c;
    const PvReal *x = (const PvReal *)args->x + row * count;
    const PvReal *dy = (const PvReal *)args->dy + row * count;
    const PvReal *gamma = (const PvReal *)args->gamma;
    PvReal *dx = (PvReal *)args->dx + row * count;
    PvReal mean = ((const PvReal *)args->mean)[row], rstd = ((const PvReal *)args->rstd)[row];
    PvVec middle = vec_all(mean), scale = vec_all(rstd), plain = {0}, product = {0};
    int64_t i = 0;
    double plain_sum = 0, product_sum = 0;
    for (; i + PV_WIDTH <= count; i += PV_WIDTH) {
        PvVec up = vec_load(dy + i), hat = (vec_load(x + i) - middle) * scale;
        if (dgamma) {
            vec_store(dgamma + i, vec_load(dgamma + i) + up * hat);
            vec_store(dbeta + i, vec_load(dbeta + i) + up);
        }
        if (gamma)
            up *= vec_load(gamma + i);
        plain += up;
        product += up * hat;
    }
    for (; i < count; i++) {
        PvReal up = dy[i], hat = (x[i] - mean) * rstd;
        if (dgamma) {
            dgamma[i] += up * hat;
            dbeta[i] += up;
        }
        if (gamma)
            up *= gamma[i];
        plain_sum += (double)up;
        product_sum += (double)(up * hat);
    }
    plain_sum += lanes_sum(plain);
    product_sum += lanes_sum(product);
    PvReal level = (PvReal)(-plain_sum / (double)count) * rstd;
    PvReal along = (PvReal)(-product_sum / (double)count) * rstd * rstd;
    if (gamma) {
        for (i = 0; i < count; i++)
            dx[i] = pv_fma(dy[i] * gamma[i], rstd, pv_fma(x[i] - mean, along, level));
    } else {
        for (i = 0; i < count; i++)
            dx[i] = pv_fma(dy[i], rstd, pv_fma(x[i] - mean, along, level));
    }
}

static void layer_norm_grad_one(const PvRun *run, const LayerNormGradArgs *args)
{
    int64_t c = args->c, per = pv_most(1, pv_ceil_div(args->rows, PV_NORM_PARTS));
    int64_t parts = pv_ceil_div(args->rows, per);
    bool collect = args->dgamma && args->dbeta;
    PvReal *sums = (PvReal *)run->scratch; // [part][dgamma, dbeta][c]
#pragma omp parallel for schedule(static) num_threads(run->threads) if (parts > 1)
    for (int64_t part = 0; part < parts; part++) {
        PvReal *mine = sums + part * 2 * c;
        if (collect)
            memset(mine, 0, (size_t)(2 * c) * sizeof *mine);
        for (int64_t row = part * per; row < pv_least((part + 1) * per, args->rows); row++)
            layer_norm_grad_row(args, row, collect ? mine : NULL, mine + c);
    }
    for (int64_t i = 0; collect && i < c; i++) {
        PvReal gamma = start_of(args->dgamma_added, i), beta = start_of(args->dbeta_added, i);
        for (int64_t part = 0; part < parts; part++) {
            gamma += sums[part * 2 * c + i];
            beta += sums[part * 2 * c + c + i];
        }
        ((PvReal *)args->dgamma)[i] = gamma;
        ((PvReal *)args->dbeta)[i] = beta;
    }
}

void pv_layer_norm_grad(const PvRun *run, const int64_t *raw)
{
    const LayerNormGradArgs *args = (const LayerNormGradArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        layer_norm_grad_one(run, &args[i]);
}

// ---- softmax ----

static void softmax_row(PvReal *y, const PvReal *x, int64_t count)
{
    PvVec high = vec_all(-(PvReal)INFINITY), total = {0};
    int64_t i = 0, whole = count / PV_WIDTH * PV_WIDTH;
    for (; i < whole; i += PV_WIDTH)
        high = vec_max(high, vec_load(x + i));
    PvReal most = -(PvReal)INFINITY, sum = 0;
    for (int lane = 0; lane < PV_WIDTH; lane++)
        most = pv_max(most, high[lane]);
    for (; i < count; i++)
        most = pv_max(most, x[i]);
    for (i = 0; i < whole; i += PV_WIDTH) {
        PvVec e = vec_exp_negative(vec_load(x + i) - vec_all(most));
        total += e;
        vec_store(y + i, e);
    }
    for (int lane = 0; lane < PV_WIDTH; lane++)
        sum += total[lane];
    PvVec rest = vec_exp_negative(vec_load_part(x + whole, count - whole) - vec_all(most));
    for (; i < count; i++) {
        y[i] = rest[i - whole];
        sum += y[i];
    }
    PvReal inverse = 1 / sum;
    for (i = 0; i < count; i++)
        y[i] *= inverse;
}

static void softmax_one(const PvRun *run, const SoftmaxArgs *args)
{
#pragma omp parallel for schedule(static, ROW_BLOCK)                                               \
    num_threads(run->threads) if (args->rows > ROW_BLOCK)
    for (int64_t row = 0; row < args->rows; row++)
        softmax_row((PvReal *)args->y + row * args->c, (const PvReal *)args->x + row * args->c,
                    args->c);
}

void pv_softmax(const PvRun *run, const int64_t *raw)
{
    const SoftmaxArgs *args = (const SoftmaxArgs *)raw;
    for (uint32_t i = 0; i < run->segments; i++)
        softmax_one(run, &args[i]);
}
