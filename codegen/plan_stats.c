// What a plan's launches are, for --stats: how many of each kernel, and what they move.
//
// Copies are told apart: those that repeat elements (resampling), those that turn axes round
// (transposes), and the rest, elements that lie elsewhere in the same order. Kernels that are
// emitted are one class, whatever they compute.
#include <string.h>

#include "codegen/codegen.h"

typedef struct {
    const char *name;
    uint32_t launches, segments;
} Class;

enum { MAX_CLASSES = 40 };

// "repeating copy", "transpose" or "copy": by the strides of the first segment.
static const char *copy_class(const PlanArg *args)
{
    const PlanArg *x = &args[ARG(CopyArgs, x_stride)], *y = &args[ARG(CopyArgs, y_stride)];
    int64_t axes = args[ARG(CopyArgs, axes)].a;
    bool turned = false;
    for (int64_t i = 0; i < axes; i++) {
        if (x[i].a == 0 && x[i].c == 0)
            return "repeating copy";
        for (int64_t k = 0; k < i; k++)        // batch axes lie outermost on either side
            turned |= !x[i].c && !x[k].c && !y[i].c && !y[k].c &&
                      (x[i].a < x[k].a) != (y[i].a < y[k].a);
    }
    return turned ? "transpose" : "copy";
}

static const char *class_of(const Codegen *cg, const Work *work, const PlanLaunch *launch)
{
    const Kernel *kernel = &cg->kernels[launch->kernel];
    if (kernel->text)
        return "elementwise";
    if (strcmp(kernel->symbol, "pv_copy") == 0)
        return copy_class(&work->args[launch->arg]);
    return kernel->symbol + strlen("pv_");
}

void print_plan_stats(FILE *out, const Codegen *cg, const Work *work)
{
    Class classes[MAX_CLASSES];
    uint32_t count = 0;
    double fixed = 0, per_batch = 0;
    for (uint32_t i = 0; i < work->launch_count; i++) {
        const PlanLaunch *launch = &work->launches[i];
        const char *name = class_of(cg, work, launch);
        uint32_t k = 0;
        while (k < count && strcmp(classes[k].name, name) != 0)
            k++;
        if (k == count && count < MAX_CLASSES)
            classes[count++] = (Class){.name = name};
        if (k < count) {
            classes[k].launches++;
            classes[k].segments += launch->segments;
        }
        fixed += launch->bytes_fixed;
        per_batch += launch->bytes_batch;
    }
    fprintf(out, "   ");
    for (uint32_t k = 0; k < count; k++) {
        fprintf(out, " %u %s", classes[k].launches, classes[k].name);
        if (classes[k].segments > classes[k].launches)
            fprintf(out, " (of %u)", classes[k].segments);
        if (k + 1 < count)
            fputc(',', out);
    }
    fprintf(out, "; moves %.1f + %.1f b MB\n", fixed * 1e-6, per_batch * 1e-6);
}
