// The report of `bench` as text: for each case its ladder, a line a rung, and the slowest kernels.
#include <stdio.h>
#include <string.h>

#include "runtime/bench.h"

enum { MOST_KERNELS = 16, COMPUTES_WIDTH = 44 };

static double number(const json_t *json, const char *key)
{
    return json_number_value(json_object_get(json, key));
}

static const char *text(const json_t *json, const char *key)
{
    const char *value = json_string_value(json_object_get(json, key));
    return value ? value : "";
}

static void print_ladder(FILE *out, const json_t *program)
{
    const json_t *rungs = json_object_get(program, "rungs"), *rung;
    size_t i;
    fprintf(out, "%-14s %8s %10s %9s %10s %9s %11s %10s\n", "rung", "launches", "MB moved", "GFLOP",
            "ms a step", "speed-up", "memory MB", "error");
    json_array_foreach(rungs, i, rung)
    {
        fprintf(out, "%-14s %8.0f %10.4g %9.4g %10.4g %8.2fx %11.4g ", text(rung, "name"),
                number(rung, "launches"), 1e-6 * number(rung, "bytes"),
                1e-9 * number(rung, "flops"), 1e3 * number(rung, "seconds"),
                number(rung, "speedup"), 1e-6 * number(rung, "memory_bytes"));
        if (json_is_number(json_object_get(rung, "largest_error")))
            fprintf(out, "%10.1e\n", number(rung, "largest_error"));
        else
            fprintf(out, "%10s\n", "not finite");
    }
    fprintf(out, "errors are against %s; memory is activations and workspace\n\n",
            text(program, "error_against"));
}

// At most `width` bytes of a text, with dots where it was cut.
static void print_cut(FILE *out, const char *name, int width)
{
    if ((int)strlen(name) <= width)
        fprintf(out, "%-*s", width, name);
    else
        fprintf(out, "%.*s...", width - 3, name);
}

static void print_kernels(FILE *out, const json_t *program)
{
    const json_t *kernels = json_object_get(program, "kernels"), *row;
    size_t i;
    double total = 0, rest = 0;
    json_array_foreach(kernels, i, row) total += number(row, "seconds");
    fprintf(out, "%9s %6s %5s %9s %9s %8s  %-*s %s\n", "ms", "share", "times", "GFLOP/s", "GB/s",
            "roofline", COMPUTES_WIDTH, "kernel", "from");
    json_array_foreach(kernels, i, row)
    {
        double seconds = number(row, "seconds");
        if (i >= MOST_KERNELS) {
            rest += seconds;
            continue;
        }
        double rate = seconds > 0 ? 1e-9 / seconds : 0;
        fprintf(out, "%9.4g %5.1f%% %5.0f %9.4g %9.4g %7.0f%%  ", 1e3 * seconds,
                total > 0 ? 100 * seconds / total : 0, number(row, "launches"),
                number(row, "flops") * rate, number(row, "bytes") * rate,
                seconds > 0 ? 100 * number(row, "predicted_seconds") / seconds : 0);
        print_cut(out, text(row, "computes"), COMPUTES_WIDTH);
        const char *line = text(row, "line"), *path = text(row, "path");
        fprintf(out, " %s\n", *line ? line : *path ? path : "the results' places");
    }
    if (rest > 0)
        fprintf(out, "%9.4g %5.1f%%        %zu more kinds of kernels\n", 1e3 * rest,
                100 * rest / total, json_array_size(kernels) - MOST_KERNELS);
    fputc('\n', out);
}

void pv_bench_print(FILE *out, const json_t *report)
{
    const json_t *machine = json_object_get(report, "machine"), *program;
    size_t i;
    fprintf(out,
            "%s on %s, %s, %.0f threads: copies %.1f GB/s (%.1f in a cache), products "
            "%.1f GFLOP/s\n\n",
            text(report, "model"), text(report, "device"), text(report, "dtype"),
            number(report, "threads"), 1e-9 * number(machine, "copy_bytes_per_second"),
            1e-9 * number(machine, "cached_copy_bytes_per_second"),
            1e-9 * number(machine, "product_flops_per_second"));
    json_array_foreach(json_object_get(report, "programs"), i, program)
    {
        fprintf(out, "== %s (%s), batch %.0f, medians of %.0f rounds\n", text(program, "name"),
                text(program, "kind"), number(program, "batch"), number(report, "rounds"));
        print_ladder(out, program);
        print_kernels(out, program);
    }
}
