// Values of a model's options. An option of a block hides a global one of the same name; a YAML
// file may hold keys for several stages, "diffusion: {lr: 1e-4}", of which a run of one stage reads
// its own and leaves the others alone.
#include "runtime/options.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/tensor.h"

PvScalar *pv_options_new(const PvModel *model)
{
    PvScalar *slots = pv_alloc((model->option_slots + 1u) * sizeof *slots);
    for (uint32_t i = 0; i < model->option_count; i++) {
        const PvOption *option = &model->options[i];
        for (uint32_t k = 0; k < option->count && option->dtype != PV_NONE; k++)
            slots[option->slot + k] = option->value[k];
    }
    return slots;
}

const PvOption *pv_option_find(const PvModel *model, const char *stage, const char *name)
{
    const PvOption *global = NULL;
    for (uint32_t i = 0; i < model->option_count; i++) {
        const PvOption *option = &model->options[i];
        if (strcmp(option->name, name) != 0)
            continue;
        if (stage && option->stage && strcmp(option->stage, stage) == 0)
            return option;
        if (!option->stage)
            global = option;
    }
    return global;
}

PvSetting *pv_stage_setting(PvConfig *config, const char *stage, const char *name)
{
    PvSetting *setting = pv_config_find(config, name);
    if (stage) {
        char *key = pv_printf("%s.%s", stage, name);
        PvSetting *own = pv_config_find(config, key);
        free(key);
        if (own)
            setting = own;
    }
    return setting;
}

static bool assign(const PvOption *option, const PvSetting *setting, PvScalar *slots,
                   PvError *error)
{
    if (setting->count != option->count && setting->count != 1)
        return pv_error(error, PV_WRONG, "%s: %s: expected %u numbers, found %zu", setting->place,
                        option->name, option->count, setting->count);
    for (uint32_t k = 0; k < option->count; k++) {
        size_t from = setting->count == 1 ? 0 : k;
        PvScalar *slot = &slots[option->slot + k];
        bool truth = false;
        bool good;
        if (option->dtype == PV_BOOL) {
            good = pv_setting_bool(setting, from, &truth, error);
            slot->i = truth;
        } else if (option->dtype == PV_I64) {
            good = pv_setting_int(setting, from, &slot->i, error);
        } else {
            good = pv_setting_real(setting, from, &slot->f, error);
        }
        if (!good)
            return false;
    }
    return true;
}

static bool visible(const PvModel *model, const PvOption *option, const char *stage)
{
    return option->dtype != PV_NONE && pv_option_find(model, stage, option->name) == option;
}

bool pv_options_apply(const PvModel *model, const char *stage, PvConfig *config, PvScalar *slots,
                      PvError *error)
{
    for (uint32_t i = 0; i < model->option_count; i++) {
        const PvOption *option = &model->options[i];
        if (!visible(model, option, stage))
            continue;
        const PvSetting *setting = pv_stage_setting(config, stage, option->name);
        if (setting && !assign(option, setting, slots, error))
            return false;
    }
    return true;
}

void pv_option_put(const PvModel *model, const char *stage, const char *name, int64_t value,
                   PvScalar *slots)
{
    const PvOption *option = pv_option_find(model, stage, name);
    if (!option || option->dtype == PV_NONE)
        return;
    if (pv_dtype_is_real(option->dtype))
        slots[option->slot].f = (double)value;
    else
        slots[option->slot].i = value;
}

void pv_options_names(const PvModel *model, const char *stage, PvWords *names)
{
    for (uint32_t i = 0; i < model->option_count; i++)
        if (visible(model, &model->options[i], stage))
            pv_words_add(names, model->options[i].name);
}
