// `loss.png`: how the losses of a run went, drawn from its log.jsonl.
//
// One curve for every minimize of the stage: each row of the log as a pale point, and over the
// points their mean over a window of 1/10 of the rows, centred, so that the line does not lag.
// Where all losses are positive and spread over more than a decade the axis is logarithmic.
// The picture is a convenience: that it cannot be drawn is told, and stops no training.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/file.h"
#include "runtime/log.h"

enum { MAX_CURVES = 6 };

// Means of y over windows of 2 * half + 1 points, fewer at both ends. malloc'ed [count].
static double *smooth(const double *y, size_t count, size_t half)
{
    double *mean = pv_alloc((count + 1) * sizeof *mean), sum = 0;
    size_t from = 0, to = 0; // the window is [from, to)
    for (size_t i = 0; i < count; i++) {
        while (to < count && to <= i + half)
            sum += y[to++];
        while (from + half < i)
            sum -= y[from++];
        mean[i] = sum / (double)(to - from);
    }
    return mean;
}

static bool is_wide(const PvCurve *curves, size_t count)
{
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < curves[i].count; k++) {
            low = fmin(low, curves[i].y[k]);
            high = fmax(high, curves[i].y[k]);
        }
    }
    return low > 0 && high > 10 * low;
}

static bool draw(const char *path, const char *title, const PvCurve *curves, size_t count,
                 PvError *error)
{
    PvImage image = {0};
    PvChart chart = {.title = title,
                     .x_label = "step",
                     .y_label = "loss",
                     .curves = curves,
                     .curve_count = count,
                     .log_y = is_wide(curves, count)};
    bool good = pv_image_chart(&image, &chart, error) && pv_image_write(path, &image, error);
    pv_image_free(&image);
    return good;
}

void pv_log_chart(const char *folder, const char *title, const char *const *names, size_t count)
{
    PvCurve curves[2 * MAX_CURVES] = {0}; // all the points, then all the lines
    double *x[MAX_CURVES] = {0}, *y[MAX_CURVES] = {0}, *mean[MAX_CURVES] = {0};
    char *log = pv_join(folder, "log.jsonl"), *path = pv_join(folder, "loss.png");
    PvError error = {0};
    bool good = true;
    count = count < MAX_CURVES ? count : MAX_CURVES;
    for (size_t i = 0; good && i < count; i++) {
        size_t rows = 0;
        good = pv_log_read(log, names[i], &x[i], &y[i], &rows, &error);
        mean[i] = smooth(y[i], rows, rows / 20);
        curves[i] = (PvCurve){NULL, x[i], y[i], rows, true};
        curves[count + i] = (PvCurve){names[i], x[i], mean[i], rows, false};
    }
    if (good && !draw(path, title, curves, 2 * count, &error))
        good = false;
    if (!good)
        pv_warn("%s was not drawn: %s", path, error.text);
    pv_error_free(&error);
    for (size_t i = 0; i < count; i++) {
        free(x[i]);
        free(y[i]);
        free(mean[i]);
    }
    free(log);
    free(path);
}
