// Line charts. See image.h. Axes get ticks at 1, 2 or 5 times a power of ten, a logarithmic axis at
// powers of ten; a curve is reduced to what a pixel column can show by joining all its points.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/image.h"

enum { LEFT = 84, RIGHT = 20, TOP = 44, BOTTOM = 52, INK = 0x222222, GRID = 0xDDDDDD };

static const uint32_t colours[] = {0x1F77B4, 0xD62728, 0x2CA02C, 0xFF7F0E, 0x9467BD, 0x8C564B};

// One axis: values low .. high on pixels from .. to.
typedef struct {
    double low, high; // of log10 if `log`
    bool log;
    int from, to;
} Axis;

static bool usable(double x, double y, bool log_y)
{
    return isfinite(x) && isfinite(y) && (!log_y || y > 0);
}

static int position(const Axis *axis, double value)
{
    double at = axis->log ? log10(value) : value;
    return axis->from +
           (int)lround((at - axis->low) / (axis->high - axis->low) * (axis->to - axis->from));
}

static void find_ranges(const PvChart *chart, Axis *x, Axis *y)
{
    x->low = y->low = DBL_MAX;
    x->high = y->high = -DBL_MAX;
    for (size_t i = 0; i < chart->curve_count; i++) {
        const PvCurve *curve = &chart->curves[i];
        for (size_t k = 0; k < curve->count; k++) {
            if (!usable(curve->x[k], curve->y[k], chart->log_y))
                continue;
            double at = chart->log_y ? log10(curve->y[k]) : curve->y[k];
            x->low = fmin(x->low, curve->x[k]);
            x->high = fmax(x->high, curve->x[k]);
            y->low = fmin(y->low, at);
            y->high = fmax(y->high, at);
        }
    }
    for (int i = 0; i < 2; i++) {
        Axis *axis = i ? y : x;
        if (axis->low > axis->high)
            axis->low = axis->high = 0;
        double span = axis->high - axis->low;
        if (!(span > 1e-9 * fabs(axis->high) && span > 0)) { // one value: a range around it
            double around = fabs(axis->high) > 1e-300 ? fabs(axis->high) * 0.1 : 1;
            axis->low -= around;
            axis->high += around;
        } else if (i == 1) {
            axis->low -= span * 0.04;
            axis->high += span * 0.04;
        }
    }
}

// The distance of ticks: 1, 2 or 5 times a power of ten, at most `count` of them.
static double tick_step(double span, int count)
{
    double power = pow(10, floor(log10(span / count)));
    double ratio = span / count / power;
    return power * (ratio <= 1 ? 1 : ratio <= 2 ? 2 : ratio <= 5 ? 5 : 10);
}

static void draw_tick(PvImage *image, const Axis *axis, double at, bool vertical, int other_from,
                      int other_to)
{
    char text[32];
    int pixel = axis->from +
                (int)lround((at - axis->low) / (axis->high - axis->low) * (axis->to - axis->from));
    double value = axis->log ? pow(10, at) : at;
    snprintf(text, sizeof text,
             fabs(value) >= 1e5 ? "%.3g"
             : axis->log        ? "%.3g"
                                : "%.5g",
             fabs(value) < 1e-12 ? 0 : value);
    if (vertical) {
        pv_image_line(image, other_from, pixel, other_to, pixel, GRID);
        pv_image_text(image, other_from - 8 - pv_image_text_width(text, 1), pixel - 4, text, 1,
                      INK);
    } else {
        pv_image_line(image, pixel, other_from, pixel, other_to, GRID);
        pv_image_text(image, pixel - pv_image_text_width(text, 1) / 2, other_to + 8, text, 1, INK);
    }
}

// Ticks of a logarithmic axis: powers of ten, on short ones 2 and 5 times them as well.
static void draw_decades(PvImage *image, const Axis *axis, bool vertical, int other_from,
                         int other_to)
{
    static const double parts[] = {0, 0.30102999566398120, 0.69897000433601880}; // log10 of 1, 2, 5
    double span = axis->high - axis->low, step = ceil(span / 12);
    for (double power = floor(axis->low); power <= axis->high; power += step) {
        for (int i = 0; i < (span < 3 ? 3 : 1); i++) {
            double at = power + parts[i];
            if (at >= axis->low && at <= axis->high)
                draw_tick(image, axis, at, vertical, other_from, other_to);
        }
    }
}

static void draw_axis(PvImage *image, const Axis *axis, bool vertical, int other_from, int other_to)
{
    double step = tick_step(axis->high - axis->low, vertical ? 8 : 10);
    double first = ceil(axis->low / step);
    if (axis->log && axis->high - axis->low > 0.5) {
        draw_decades(image, axis, vertical, other_from, other_to);
        return;
    }
    for (int i = 0; i < 40; i++) {
        double at = (first + i) * step;
        if (at > axis->high + step * 1e-6)
            break;
        draw_tick(image, axis, at, vertical, other_from, other_to);
    }
}

// A third of the colour on white.
static uint32_t pale(uint32_t rgb)
{
    uint32_t third = (rgb >> 16) / 3 << 16 | (rgb >> 8 & 255) / 3 << 8 | (rgb & 255) / 3;
    return 0xAAAAAA + third;
}

static void draw_points(PvImage *image, const PvChart *chart, const PvCurve *curve, uint32_t colour,
                        const Axis *x, const Axis *y)
{
    for (size_t i = 0; i < curve->count; i++)
        if (usable(curve->x[i], curve->y[i], chart->log_y))
            pv_image_rectangle(image, position(x, curve->x[i]) - 1, position(y, curve->y[i]) - 1, 3,
                               3, colour);
}

static void draw_line(PvImage *image, const PvChart *chart, const PvCurve *curve, uint32_t colour,
                      const Axis *x, const Axis *y)
{
    bool started = false;
    int last_x = 0, last_y = 0;
    for (size_t i = 0; i < curve->count; i++) {
        if (!usable(curve->x[i], curve->y[i], chart->log_y)) {
            started = false;
            continue;
        }
        int at_x = position(x, curve->x[i]), at_y = position(y, curve->y[i]);
        if (!started)
            last_x = at_x, last_y = at_y;
        for (int k = 0; k < 2; k++) { // two pixels thick
            pv_image_line(image, last_x, last_y + k, at_x, at_y + k, colour);
            pv_image_line(image, last_x + k, last_y, at_x + k, at_y, colour);
        }
        started = true;
        last_x = at_x;
        last_y = at_y;
    }
}

// Points and lines are coloured each in their own order: a curve given as both has one colour.
static void draw_curves(PvImage *image, const PvChart *chart, const Axis *x, const Axis *y)
{
    size_t order[2] = {0}; // of lines, of points
    for (size_t i = 0; i < chart->curve_count; i++) {
        const PvCurve *curve = &chart->curves[i];
        size_t index = order[curve->points]++;
        uint32_t colour = colours[index % (sizeof colours / sizeof colours[0])];
        if (curve->points)
            draw_points(image, chart, curve, pale(colour), x, y);
        else
            draw_line(image, chart, curve, colour, x, y);
    }
}

static void draw_legend(PvImage *image, const PvChart *chart, const Axis *x)
{
    size_t lines = 0;
    for (size_t i = 0; i < chart->curve_count; i++) {
        const PvCurve *curve = &chart->curves[i];
        if (curve->points || !curve->name)
            continue;
        int row = TOP + 8 + (int)lines * 14;
        int text_x = x->to - 12 - pv_image_text_width(curve->name, 1);
        uint32_t colour = colours[lines++ % (sizeof colours / sizeof colours[0])];
        pv_image_rectangle(image, text_x - 22, row - 2, x->to - text_x + 20, 13, 0xFFFFFF);
        pv_image_rectangle(image, text_x - 20, row + 3, 14, 2, colour);
        pv_image_text(image, text_x, row, curve->name, 1, INK);
    }
}

bool pv_image_chart(PvImage *image, const PvChart *chart, PvError *error)
{
    int width = chart->width > 0 ? chart->width : 960,
        height = chart->height > 0 ? chart->height : 540;
    if (width < 240 || height < 160)
        return pv_error(error, PV_WRONG, "a chart of %d x %d pixels (at least 240 x 160)", width,
                        height);
    if (!pv_image_new(image, width, height, error))
        return false;
    pv_image_fill(image, 0xFFFFFF);
    Axis x = {.from = LEFT, .to = width - RIGHT};
    Axis y = {.from = height - BOTTOM, .to = TOP, .log = chart->log_y};
    find_ranges(chart, &x, &y);
    draw_axis(image, &x, false, y.to, y.from);
    draw_axis(image, &y, true, x.from, x.to);
    pv_image_line(image, x.from, y.from, x.to, y.from, INK);
    pv_image_line(image, x.from, y.from, x.from, y.to, INK);
    draw_curves(image, chart, &x, &y);
    draw_legend(image, chart, &x);
    if (chart->title) {
        int wide = pv_image_text_width(chart->title, 2);
        pv_image_text(image, (width - wide) / 2, 12, chart->title, 2, INK);
    }
    if (chart->x_label) {
        int wide = pv_image_text_width(chart->x_label, 1);
        pv_image_text(image, (x.from + x.to - wide) / 2, height - 20, chart->x_label, 1, INK);
    }
    if (chart->y_label)
        pv_image_text(image, 12, TOP - 18, chart->y_label, 1, INK);
    return true;
}
