// `weights ls|import|export|init`: what is in a tensor file; a published checkpoint to this model's
// names; one instance of a checkpoint to plain names; the values that training starts from.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/command.h"
#include "runtime/config.h"
#include "runtime/exec.h"
#include "runtime/safetensors.h"
#include "runtime/session.h"

typedef struct {
    const char *instance, *out, *prefix;
    int64_t seed;
    bool ema;
} Weights;

static bool list(const char *path, PvError *error)
{
    PvTensorSet set = {0};
    if (!pv_tensors_read(path, &set, error))
        return false;
    int64_t bytes = 0;
    char text[PV_SHAPE_TEXT];
    for (size_t i = 0; i < set.metadata_count; i++)
        printf("# %s = %s\n", set.metadata[i].key, set.metadata[i].value);
    for (size_t i = 0; i < set.count; i++) {
        const PvTensor *tensor = set.items[i].tensor;
        printf("%-5s %-24s %s\n", pv_dtype_name(tensor->dtype),
               pv_shape_text(text, tensor->rank, tensor->dim), set.items[i].name);
        bytes += tensor->bytes;
    }
    printf("%zu tensors, %s\n", set.count, pv_size_text(text, (double)bytes));
    pv_set_free(&set);
    return true;
}

static int find_instance(const char *name, PvError *error)
{
    PvWords names = {0};
    int found = -1;
    for (uint32_t i = 0; i < pv_model.instance_count; i++) {
        pv_words_add(&names, pv_model.instances[i].name);
        if (name && strcmp(pv_model.instances[i].name, name) == 0)
            found = (int)i;
    }
    if (!name && names.count == 1)
        found = 0;
    else if (!name)
        pv_error(error, PV_USAGE, "which instance? --instance NAME");
    else if (found < 0)
        pv_unknown("instance", name, names.items, names.count, PV_WRONG, error);
    pv_words_free(&names);
    return found;
}

// The parameters of an instance as `params` has them, named prefix + (with or without "unet.").
static bool write_instance(const Weights *w, int index, const char *params, bool plain,
                           PvError *error)
{
    const PvInstance *instance = &pv_model.instances[index];
    PvWriter *writer = pv_writer_new();
    size_t skip = plain ? strlen(instance->name) + 1 : 0;
    for (uint32_t i = instance->first; i < instance->first + instance->count; i++) {
        const PvParam *param = &pv_model.params[i];
        char *name = pv_printf("%s%s", w->prefix ? w->prefix : "", param->name + skip);
        pv_writer_add(writer, name, param->type.dtype, param->type.rank, param->type.dim,
                      params + param->offset, param->type.dtype);
        free(name);
    }
    pv_writer_metadata(writer, "model", pv_model.name);
    pv_writer_metadata(writer, "instance", instance->name);
    if (!pv_writer_finish(writer, w->out, error))
        return false;
    printf("%s: %u tensors of '%s'\n", w->out, instance->count, instance->name);
    return true;
}

// The instance to work on; -1 with an error, also when there is no file to write to.
static int target(const Weights *w, PvError *error)
{
    int index = find_instance(w->instance, error);
    if (index >= 0 && !w->out) {
        pv_error(error, PV_USAGE, "where to? -o FILE.safetensors");
        return -1;
    }
    return index;
}

// `init`: what `train` gives an instance that no file covers, with the same seed.
static bool initialize(const Weights *w, PvError *error)
{
    int index = target(w, error);
    if (index < 0)
        return false;
    if (w->seed < 0)
        return pv_error(error, PV_USAGE, "--seed must be at least 0");
    const PvMemoryItem need = {"parameters", pv_model.instances[index].size, 0};
    if (!pv_memory_check("weights init", &need, 1, 1, error))
        return false;
    char *params = pv_space_new(pv_model.param_bytes);
    if (!params)
        return pv_error(error, PV_MACHINE, "no address space for the parameters");
    pv_instance_init(&pv_model, (uint32_t)index, (uint64_t)w->seed, params);
    bool good = write_instance(w, index, params, false, error);
    pv_space_free(params, pv_model.param_bytes);
    return good;
}

static bool convert(const Weights *w, const char *file, bool plain, PvError *error)
{
    int index = target(w, error);
    if (index < 0)
        return false;
    char *params = pv_space_new(pv_model.param_bytes);
    bool *loaded = pv_alloc(pv_model.instance_count + 1u);
    char *spec = pv_printf("%s=%s", pv_model.instances[index].name, file);
    const char *specs[] = {spec};
    uint32_t wanted = (uint32_t)index;
    bool good =
        params ? pv_weights_mount(&pv_model, specs, 1, &wanted, 1, w->ema, params, loaded, error)
               : pv_error(error, PV_MACHINE, "no address space for the parameters");
    if (good && !loaded[index])
        good = pv_error(error, PV_WRONG, "%s: no tensor belongs to '%s'", file,
                        pv_model.instances[index].name);
    good = good && write_instance(w, index, params, plain, error);
    free(spec);
    free(loaded);
    pv_space_free(params, pv_model.param_bytes);
    return good;
}

static bool work(const Weights *w, const PvWords *words, PvError *error)
{
    static const char *const actions[] = {"ls", "import", "export", "init"};
    enum { LS, IMPORT, EXPORT, INIT, UNKNOWN };
    int action = LS;
    while (action < UNKNOWN && strcmp(words->items[0], actions[action]) != 0)
        action++;
    if (action == UNKNOWN)
        return pv_unknown("action", words->items[0], actions, UNKNOWN, PV_USAGE, error);
    if (action == INIT)
        return words->count == 1 ? initialize(w, error)
                                 : pv_error(error, PV_USAGE, "'weights init' reads no file: '%s'",
                                            words->items[1]);
    if (words->count == 1)
        return pv_error(error, PV_USAGE, "'weights %s' wants a file", words->items[0]);
    return action == LS ? list(words->items[1], error)
                        : convert(w, words->items[1], action == EXPORT, error);
}

PvStatus cmd_weights(int argc, char **argv, PvError *error)
{
    Weights w = {0};
    PvFlag flags[] = {
        {"--instance", "NAME", PV_FLAG_TEXT, &w.instance, "instance of the model"},
        {"--out", "FILE", PV_FLAG_TEXT, &w.out, "safetensors file to write"},
        {"-o", "FILE", PV_FLAG_TEXT, &w.out, "the same"},
        {"--seed", "N", PV_FLAG_INT, &w.seed, "of first values (default 0)"},
        {"--ema", NULL, PV_FLAG_BOOL, &w.ema, "moving averages where the file has them"},
        {"--prefix", "TEXT", PV_FLAG_TEXT, &w.prefix, "put before every name that is written"},
    };
    PvUsage usage = {
        .line = "weights ls|import|export FILE[#PREFIX] | weights init",
        .about = "ls lists tensors (.safetensors, .pth, .pt; nothing in them is executed).\n"
                 "import checks a file against an instance and writes <instance>.<parameter>.\n"
                 "export writes an instance of a checkpoint under its plain names.\n"
                 "init writes the values that training with this seed starts an instance from.",
        .flags = flags,
        .flag_count = sizeof flags / sizeof *flags,
        .least = 1,
        .most = 2,
    };
    PvWords words = {0};
    bool good = pv_usage_parse(&usage, argc, argv, &words, error) && work(&w, &words, error);
    pv_words_free(&words);
    return good ? PV_DONE : error->status;
}
