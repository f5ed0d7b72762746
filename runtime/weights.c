// Mounting weight files on a model, and checkpoints. See weights.h.
//
// Mounting is a table with one row a parameter. Every tensor of every file looks for its row: its
// name is tried as it stands and with wrappings taken off its front, one after the other. What
// finds no row is surplus, rows without a tensor are missing; both, and misshapen tensors, are
// gathered into one error. Only a table without faults is written to the parameters.
#include "runtime/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/config.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "runtime/torch_file.h"

bool pv_tensors_read(const char *path, PvTensorSet *set, PvError *error)
{
    uint8_t start[4] = {0};
    FILE *file = pv_is_folder(path) ? NULL : fopen(path, "rb");
    size_t got = file ? fread(start, 1, sizeof start, file) : 0;
    if (file)
        fclose(file);
    bool zip = got == 4 && !memcmp(start, "PK\3\4", 4);
    bool pickle = got == 4 && start[0] == 0x80 && start[1] >= 2 && start[1] <= 5 && start[2] != 0;
    if (zip || pickle || pv_has_ending(path, ".pth") || pv_has_ending(path, ".pt"))
        return pv_torch_read(path, set, error);
    return pv_safetensors_read(path, set, error);
}

// ---- the table ----

typedef struct {
    PvTensor *tensor; // held; NULL: none yet
    char *name;       // in its file
    int spec;         // where it comes from
    bool ema;
} Row;

typedef struct {
    FILE *stream; // NULL: no line yet
    char *text;
    size_t size;
} Lines;

typedef struct {
    const PvModel *model;
    const uint32_t *order; // parameters sorted by name
    Row *rows;             // by parameter
    bool *targets;         // by instance: needs weights
    bool *named;           // by instance: some spec says INSTANCE=
    bool *touched;         // by instance: some row was filled
    bool ema;
    bool absent_is_fine; // an instance that no file covers is the caller's affair
    Lines missing, surplus, misshapen, twice;
    PvError *error;
} Mount;

static const PvModel *sorted_model; // of compare_params; set while sorting

static int compare_params(const void *a, const void *b)
{
    const PvParam *params = sorted_model->params;
    return strcmp(params[*(const uint32_t *)a].name, params[*(const uint32_t *)b].name);
}

static uint32_t *sort_params(const PvModel *model)
{
    uint32_t *order = pv_alloc(model->param_count * sizeof *order);
    for (uint32_t i = 0; i < model->param_count; i++)
        order[i] = i;
    sorted_model = model;
    if (model->param_count > 1)
        qsort(order, model->param_count, sizeof *order, compare_params);
    return order;
}

// The parameter "<instance>.<rest>" (instance NULL: `rest` is the full name), or UINT32_MAX.
static uint32_t find_param(const Mount *mount, const char *instance, const char *rest)
{
    size_t low = 0, high = mount->model->param_count;
    size_t length = instance ? strlen(instance) : 0;
    while (low < high) {
        size_t middle = (low + high) / 2;
        uint32_t param = mount->order[middle];
        const char *name = mount->model->params[param].name;
        int way = instance ? strncmp(name, instance, length) : 0;
        if (way == 0 && instance)
            way = (uint8_t)name[length] - '.';
        if (way == 0)
            way = strcmp(name + (instance ? length + 1 : 0), rest);
        if (way == 0)
            return param;
        if (way < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return UINT32_MAX;
}

__attribute__((format(printf, 2, 3))) static void add_line(Lines *lines, const char *format, ...)
{
    va_list list;
    if (!lines->stream)
        lines->stream = open_memstream(&lines->text, &lines->size);
    if (!lines->stream)
        pv_fail(PV_MACHINE, "not enough memory");
    fputs("\n  ", lines->stream);
    va_start(list, format);
    vfprintf(lines->stream, format, list);
    va_end(list);
}

// Adds the lines, if there are any, under a heading to the error.
static void append_lines(PvError *error, const char *heading, Lines *lines)
{
    if (!lines->stream)
        return;
    fflush(lines->stream);
    pv_error_append(error, "\n %s:%s", heading, lines->text);
}

static void free_lines(Lines *lines)
{
    if (lines->stream)
        fclose(lines->stream);
    free(lines->text);
}

// ---- names ----

// Length of a wrapping at the front of a name, 0: none. Sets *ema for those of averages.
static size_t wrapping(const char *name, bool *ema)
{
    static const char *const plain[] = {"state_dict.", "model.", "module.", "diffusion_model."};
    static const char *const averaged[] = {"ema_model.", "ema."};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (!strncmp(name, plain[i], strlen(plain[i])))
            return strlen(plain[i]);
    }
    for (size_t i = 0; i < sizeof averaged / sizeof averaged[0]; i++) {
        if (strncmp(name, averaged[i], strlen(averaged[i])))
            continue;
        *ema = true;
        return strlen(averaged[i]);
    }
    return 0;
}

// The instance whose name and a dot stand at the front, or -1.
static int leading_instance(const PvModel *model, const char *name)
{
    for (uint32_t i = 0; i < model->instance_count; i++) {
        size_t length = strlen(model->instances[i].name);
        if (!strncmp(name, model->instances[i].name, length) && name[length] == '.')
            return (int)i;
    }
    return -1;
}

// Does `name` end in all path segments of `tail`?
static bool ends_in(const char *name, const char *tail)
{
    size_t length = strlen(name), tail_length = strlen(tail);
    if (length < tail_length || strcmp(name + length - tail_length, tail))
        return false;
    return length == tail_length || name[length - tail_length - 1] == '.';
}

static bool is_ignored(const PvModel *model, int instance, const char *name)
{
    if (ends_in(name, "num_batches_tracked"))
        return true;
    for (uint32_t i = 0; i < model->instance_count; i++) {
        if (instance >= 0 && i != (uint32_t)instance)
            continue;
        for (uint32_t k = 0; k < model->instances[i].ignored_count; k++) {
            if (ends_in(name, model->instances[i].ignored[k]))
                return true;
        }
    }
    return false;
}

// The parameter a file's name means for an instance (-1: any target; `plain`: the target whose
// names may stand without the instance's in front, or -1). UINT32_MAX: none.
static uint32_t resolve(const Mount *mount, int instance, int plain, const char *name, bool *ema)
{
    *ema = false;
    for (;;) {
        int owner = instance >= 0 ? instance : plain;
        uint32_t found = UINT32_MAX;
        if (owner >= 0)
            found = find_param(mount, mount->model->instances[owner].name, name);
        int leading = leading_instance(mount->model, name);
        bool allowed =
            leading >= 0 && (instance < 0 ? !mount->named[leading] : instance == leading);
        if (found == UINT32_MAX && allowed && mount->targets[leading])
            found = find_param(mount, NULL, name);
        if (found != UINT32_MAX)
            return found;
        size_t skip = wrapping(name, ema);
        if (skip == 0)
            return UINT32_MAX;
        name += skip;
    }
}

// Part of another instance, of an optimizer: names that a file may well carry beside ours.
static bool belongs_elsewhere(const Mount *mount, int instance, const char *name)
{
    if (!strncmp(name, "adam_m.", 7) || !strncmp(name, "adam_v.", 7))
        return true;
    bool ema;
    for (size_t skip = 1; skip > 0; name += skip) {
        int leading = leading_instance(mount->model, name);
        if (leading >= 0 && leading != instance && !mount->targets[leading])
            return true;
        if (leading >= 0 && instance >= 0 && leading != instance)
            return true;
        if (leading >= 0 && instance < 0 && mount->named[leading])
            return true;
        skip = wrapping(name, &ema);
    }
    return false;
}

// ---- filling the table ----

static bool shape_fits(const PvParam *param, const PvTensor *tensor)
{
    if (param->count == 1 && tensor->count == 1)
        return true; // [], [1]
    return pv_tensor_fits(tensor, &param->type, 1);
}

static void fill_row(Mount *mount, uint32_t param, int spec, const char *file, const char *name,
                     PvTensor *tensor, bool ema)
{
    Row *row = &mount->rows[param];
    const PvParam *what = &mount->model->params[param];
    if (row->tensor && row->spec == spec) { // two of one file: averages or not, as asked
        if (row->ema == ema) {
            add_line(&mount->twice, "%s: '%s' and '%s' are both %s", file, row->name, name,
                     what->name);
            return;
        }
        if (ema != mount->ema)
            return;
    }
    pv_tensor_drop(row->tensor);
    free(row->name);
    *row =
        (Row){.tensor = pv_tensor_hold(tensor), .name = pv_strdup(name), .spec = spec, .ema = ema};
    mount->touched[what->instance] = true;
}

static void check_shape(Mount *mount, uint32_t param, const char *const *specs)
{
    const Row *row = &mount->rows[param];
    const PvParam *what = &mount->model->params[param];
    if (!row->tensor || shape_fits(what, row->tensor))
        return;
    char expected[PV_SHAPE_TEXT], found[PV_SHAPE_TEXT];
    add_line(&mount->misshapen, "%s: '%s' is %s, and %s is %s", specs[row->spec], row->name,
             pv_shape_text(found, row->tensor->rank, row->tensor->dim), what->name,
             pv_type_text(expected, &what->type));
}

// One target without a spec of its own, if there is just one: its names may stand plainly.
static int only_target(const Mount *mount)
{
    int only = -1;
    for (uint32_t i = 0; i < mount->model->instance_count; i++) {
        if (!mount->targets[i] || mount->named[i])
            continue;
        if (only >= 0)
            return -1;
        only = (int)i;
    }
    return only;
}

typedef struct {
    int instance; // -1: not said
    char *path;
    const char *inner; // INSTANCE.INNER=: goes before the file's names; inner_length bytes
    size_t inner_length;
    const char *prefix; // within the spec; "" : none
} Spec;

static bool parse_spec(const PvModel *model, const char *text, Spec *spec, PvError *error)
{
    *spec = (Spec){.instance = -1, .inner = "", .prefix = ""};
    const char *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : 0;
    for (uint32_t i = 0; i < model->instance_count && equals; i++) {
        size_t own = strlen(model->instances[i].name);
        if (own > length || strncmp(model->instances[i].name, text, own))
            continue;
        if (own < length && text[own] != '.')
            continue;
        spec->instance = (int)i;
        spec->inner = text + own + (own < length);
        spec->inner_length = own < length ? length - own - 1 : 0;
    }
    if (equals && spec->instance < 0 && !memchr(text, '/', length) && !pv_path_exists(text)) {
        char *known = NULL;
        for (uint32_t i = 0; i < model->instance_count; i++) {
            char *more =
                pv_printf("%s%s%s", known ? known : "", known ? " " : "", model->instances[i].name);
            free(known);
            known = more;
        }
        pv_error(error, PV_WRONG, "--weights %s: the model has no instance '%.*s'", text,
                 (int)length, text);
        pv_error_hint(error, "instances: %s", known ? known : "(none)");
        free(known);
        return false;
    }
    const char *path = spec->instance >= 0 ? equals + 1 : text;
    const char *hash = strrchr(path, '#');
    if (hash && pv_path_exists(path))
        hash = NULL;
    spec->path = hash ? pv_printf("%.*s", (int)(hash - path), path) : pv_strdup(path);
    if (hash)
        spec->prefix = hash + 1;
    return true;
}

static bool mount_file(Mount *mount, const Spec *spec, int index)
{
    PvTensorSet set = {0};
    if (!pv_tensors_read(spec->path, &set, mount->error))
        return false;
    size_t prefix = strlen(spec->prefix), taken = 0;
    int plain = only_target(mount);
    for (size_t i = 0; i < set.count; i++) {
        const char *name = set.items[i].name;
        bool ema;
        if (strncmp(name, spec->prefix, prefix))
            continue;
        taken++;
        char *local = pv_printf("%.*s%s%s", (int)spec->inner_length, spec->inner,
                                spec->inner_length ? "." : "", name + prefix);
        uint32_t param = resolve(mount, spec->instance, plain, local, &ema);
        free(local);
        int owner = spec->instance >= 0 ? spec->instance : plain;
        if (param != UINT32_MAX)
            fill_row(mount, param, index, spec->path, name, set.items[i].tensor, ema);
        else if (!is_ignored(mount->model, owner, name) &&
                 !belongs_elsewhere(mount, spec->instance, name + prefix))
            add_line(&mount->surplus, "%s: '%s'", spec->path, name);
    }
    bool fine = taken > 0 || prefix == 0;
    if (!fine) {
        pv_error(mount->error, PV_WRONG, "%s: no name begins with '%s'", spec->path, spec->prefix);
        pv_error_hint(mount->error, "its first name is '%s'", set.count ? set.items[0].name : "");
    }
    pv_set_free(&set);
    return fine;
}

// ---- the verdict ----

// Missing parameters; an instance without any is one line.
static void list_missing(Mount *mount)
{
    for (uint32_t i = 0; i < mount->model->instance_count; i++) {
        const PvInstance *instance = &mount->model->instances[i];
        if (!mount->targets[i] || instance->count == 0)
            continue;
        if (!mount->touched[i]) {
            if (mount->absent_is_fine && !mount->named[i])
                continue;
            add_line(&mount->missing, "all %u of '%s'", instance->count, instance->name);
            continue;
        }
        for (uint32_t k = instance->first; k < instance->first + instance->count; k++) {
            char shape[PV_SHAPE_TEXT];
            const PvParam *param = &mount->model->params[k];
            if (mount->rows[k].tensor || ends_in(param->name, "num_batches_tracked"))
                continue;
            add_line(&mount->missing, "%s %s", param->name, pv_type_text(shape, &param->type));
        }
    }
}

static bool judge(Mount *mount, size_t spec_count)
{
    list_missing(mount);
    if (!mount->missing.stream && !mount->surplus.stream && !mount->misshapen.stream &&
        !mount->twice.stream)
        return true;
    pv_error(mount->error, PV_WRONG,
             spec_count == 0 ? "no weights were given" : "the weights do not fit the model");
    append_lines(mount->error, "missing", &mount->missing);
    append_lines(mount->error, "misshapen", &mount->misshapen);
    append_lines(mount->error, "surplus", &mount->surplus);
    append_lines(mount->error, "there twice", &mount->twice);
    return pv_error_hint(mount->error, "--weights [INSTANCE=]FILE[#PREFIX] takes the names that "
                                       "begin with PREFIX; `weights ls FILE` lists names");
}

static void write_params(const Mount *mount, char *params, bool *loaded)
{
    for (uint32_t i = 0; i < mount->model->param_count; i++) {
        const PvParam *param = &mount->model->params[i];
        const PvTensor *tensor = mount->rows[i].tensor;
        if (!tensor)
            continue;
        int dtype = param->type.dtype == PV_I64 ? PV_I64 : PV_REAL_DTYPE;
        pv_convert(params + param->offset, dtype, tensor->data, tensor->dtype, param->count);
    }
    for (uint32_t i = 0; loaded && i < mount->model->instance_count; i++) {
        if (mount->touched[i])
            loaded[i] = true;
    }
}

static void free_mount(Mount *mount)
{
    for (uint32_t i = 0; i < mount->model->param_count; i++) {
        pv_tensor_drop(mount->rows[i].tensor);
        free(mount->rows[i].name);
    }
    free((void *)(uintptr_t)mount->order);
    free(mount->rows);
    free(mount->targets);
    free(mount->named);
    free(mount->touched);
    free_lines(&mount->missing);
    free_lines(&mount->surplus);
    free_lines(&mount->misshapen);
    free_lines(&mount->twice);
}

bool pv_weights_mount(const PvModel *model, const char *const *specs, size_t spec_count,
                      const uint32_t *wanted, uint32_t wanted_count, bool ema, char *params,
                      bool *loaded, PvError *error)
{
    Mount mount = {
        .model = model,
        .order = sort_params(model),
        .ema = ema,
        .error = error,
        .absent_is_fine = loaded != NULL,
        .rows = pv_alloc(model->param_count * sizeof(Row)),
        .targets = pv_alloc(model->instance_count),
        .named = pv_alloc(model->instance_count),
        .touched = pv_alloc(model->instance_count),
    };
    Spec *parsed = pv_alloc(spec_count * sizeof *parsed);
    bool fine = true;
    for (uint32_t i = 0; i < wanted_count; i++)
        mount.targets[wanted[i]] = true;
    for (size_t i = 0; i < spec_count && fine; i++) {
        fine = parse_spec(model, specs[i], &parsed[i], error);
        if (fine && parsed[i].instance >= 0)
            mount.targets[parsed[i].instance] = mount.named[parsed[i].instance] = true;
    }
    for (size_t i = 0; i < spec_count && fine; i++)
        fine = mount_file(&mount, &parsed[i], (int)i);
    const char **paths = pv_alloc(spec_count * sizeof *paths);
    for (size_t i = 0; i < spec_count; i++)
        paths[i] = parsed[i].path;
    for (uint32_t i = 0; i < model->param_count && fine; i++)
        check_shape(&mount, i, paths);
    fine = fine && judge(&mount, spec_count);
    if (fine)
        write_params(&mount, params, loaded);
    for (size_t i = 0; i < spec_count; i++)
        free(parsed[i].path);
    free(paths);
    free(parsed);
    free_mount(&mount);
    return fine;
}
