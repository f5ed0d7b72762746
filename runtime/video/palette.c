// 256 colours for a GIF frame: median cut (Heckbert, "Color image quantization for frame buffer
// display", SIGGRAPH 1982) on colours of 5 bits a channel, then the nearest colour with the error
// carried on to the right and to the row below (Floyd and Steinberg). Entry 255 stays free: the
// encoder uses one colour as transparent.
#include <stdlib.h>
#include <string.h>

#include "runtime/video/parts.h"

enum { CELLS = 1 << 15, COLOURS = 255 };

typedef struct {
    int first, count; // in the list of cells in use
    int axis;         // longest side: 0 red, 1 green, 2 blue
    int64_t pixels;
    int length; // of that side
} Box;

typedef struct {
    uint16_t cell;
    int64_t pixels;
    int64_t sum[3]; // of their colours
} Cell;

static int channel(int cell, int axis)
{
    return cell >> (10 - 5 * axis) & 31;
}

static int compare_axis(const Cell *a, const Cell *b, int axis)
{
    int way = channel(a->cell, axis) - channel(b->cell, axis);
    return way ? way : (int)a->cell - (int)b->cell;
}

static int compare_red(const void *a, const void *b)
{
    return compare_axis(a, b, 0);
}

static int compare_green(const void *a, const void *b)
{
    return compare_axis(a, b, 1);
}

static int compare_blue(const void *a, const void *b)
{
    return compare_axis(a, b, 2);
}

static void measure(Box *box, const Cell *cells)
{
    box->pixels = 0;
    box->length = -1;
    for (int axis = 0; axis < 3; axis++) {
        int low = 31, high = 0;
        for (int i = 0; i < box->count; i++) {
            int at = channel(cells[box->first + i].cell, axis);
            low = at < low ? at : low;
            high = at > high ? at : high;
        }
        if (high - low <= box->length)
            continue;
        box->length = high - low;
        box->axis = axis;
    }
    for (int i = 0; i < box->count; i++)
        box->pixels += cells[box->first + i].pixels;
}

// Cuts a box where half of its pixels are on either side.
static void cut(Box *box, Box *other, Cell *cells)
{
    static int (*const compare[])(const void *, const void *) = {compare_red, compare_green,
                                                                 compare_blue};
    qsort(cells + box->first, (size_t)box->count, sizeof *cells, compare[box->axis]);
    int64_t half = 0;
    int count = 0;
    while (count < box->count - 1 && (count == 0 || half < box->pixels / 2))
        half += cells[box->first + count++].pixels;
    *other = (Box){.first = box->first + count, .count = box->count - count};
    box->count = count;
    measure(box, cells);
    measure(other, cells);
}

static uint32_t mean_colour(const Box *box, const Cell *cells)
{
    int64_t sum[3] = {0}, pixels = box->pixels > 0 ? box->pixels : 1;
    for (int i = 0; i < box->count; i++) {
        const Cell *cell = &cells[box->first + i];
        for (int axis = 0; axis < 3; axis++)
            sum[axis] += cell->sum[axis];
    }
    return 0xFF000000u | (uint32_t)(sum[0] / pixels) << 16 | (uint32_t)(sum[1] / pixels) << 8 |
           (uint32_t)(sum[2] / pixels);
}

void pv_make_palette(const uint8_t *rgb, int64_t pixels, uint32_t *palette)
{
    static _Thread_local Cell cells[CELLS];
    Box boxes[COLOURS];
    int used = 0, count = 1;
    memset(cells, 0, sizeof cells);
    for (int64_t i = 0; i < pixels; i++) {
        const uint8_t *pixel = rgb + 3 * i;
        Cell *cell = &cells[pixel[0] >> 3 << 10 | pixel[1] >> 3 << 5 | pixel[2] >> 3];
        cell->pixels++;
        for (int axis = 0; axis < 3; axis++)
            cell->sum[axis] += pixel[axis];
    }
    for (int i = 0; i < CELLS; i++) {
        if (cells[i].pixels == 0)
            continue;
        cells[used] = cells[i];
        cells[used++].cell = (uint16_t)i;
    }
    boxes[0] = (Box){.count = used};
    measure(&boxes[0], cells);
    while (count < COLOURS) {
        int widest = -1;
        int64_t most = 0;
        for (int i = 0; i < count; i++) {
            int64_t weight = boxes[i].pixels * boxes[i].length;
            if (boxes[i].count < 2 || weight <= most)
                continue;
            most = weight;
            widest = i;
        }
        if (widest < 0)
            break;
        cut(&boxes[widest], &boxes[count], cells);
        count++;
    }
    for (int i = 0; i < 256; i++)
        palette[i] = i < count ? mean_colour(&boxes[i], cells) : i == COLOURS ? 0 : 0xFF000000u;
}

static int nearest(const int *colour, const uint32_t *palette)
{
    int best = 0, least = 1 << 30;
    for (int i = 0; i < COLOURS; i++) {
        int red = colour[0] - (int)(palette[i] >> 16 & 255),
            green = colour[1] - (int)(palette[i] >> 8 & 255);
        int blue = colour[2] - (int)(palette[i] & 255);
        int off = red * red * 2 + green * green * 4 + blue * blue;
        if (off >= least)
            continue;
        least = off;
        best = i;
    }
    return best;
}

void pv_apply_palette(const uint8_t *rgb, int width, int height, const uint32_t *palette,
                      uint8_t *out, int stride)
{
    static _Thread_local int16_t cache[CELLS]; // nearest colour of a cell, -1: not known
    int *carried = calloc(((size_t)width + 2) * 6, sizeof *carried); // errors times 16, 2 rows
    memset(cache, -1, sizeof cache);
    for (int y = 0; y < height && carried; y++) {
        int *here = carried + (y % 2) * (width + 2) * 3 + 3,
            *below = carried + (1 - y % 2) * (width + 2) * 3 + 3;
        memset(below - 3, 0, ((size_t)width + 2) * 3 * sizeof *below);
        for (int x = 0; x < width; x++) {
            int colour[3];
            for (int c = 0; c < 3; c++) {
                int value = rgb[((int64_t)y * width + x) * 3 + c] + here[3 * x + c] / 16;
                colour[c] = value < 0 ? 0 : value > 255 ? 255 : value;
            }
            int cell = colour[0] >> 3 << 10 | colour[1] >> 3 << 5 | colour[2] >> 3;
            if (cache[cell] < 0)
                cache[cell] = (int16_t)nearest(colour, palette);
            out[y * stride + x] = (uint8_t)cache[cell];
            uint32_t chosen = palette[cache[cell]];
            for (int c = 0; c < 3; c++) {
                int off = colour[c] - (int)(chosen >> (16 - 8 * c) & 255);
                here[3 * (x + 1) + c] += off * 7;
                below[3 * (x - 1) + c] += off * 3;
                below[3 * x + c] += off * 5;
                below[3 * (x + 1) + c] += off;
            }
        }
    }
    free(carried);
}
