// The common course of commands: open (device first, no file), find out what is needed, compare
// with the memory there is, mount weights, work, close.
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/machine.h"

// --level: the rung that the executor chooses from the ladders, which are the same for all entries.
static bool choose_level(PvSession *session, PvError *error)
{
    const PvModel *model = session->model;
    const char *text = session->level;
    if (!text)
        return true;
    if (text[0] < '0' || text[0] > '2' || text[1])
        return pv_error(error, PV_USAGE, "--level is 0, 1 or 2, not '%s'", text);
    for (uint32_t i = 0; i < model->entry_count; i++)
        for (uint32_t k = 0; k < model->entries[i].rung_count; k++)
            if (model->entries[i].rungs[k].level == text[0] - '0')
                session->exec->rung = k + 1;
    if (session->exec->rung > 0)
        return true;
    pv_error(error, PV_WRONG, "this executable was compiled at one level only");
    return pv_error_hint(error, "pvdmc --unfused-too puts all levels into it");
}

bool pv_session_open(PvSession *session, const PvModel *model, const char *stage, uint64_t seed,
                     PvError *error)
{
    session->model = model;
    if (!pv_machine_check(model, error))
        return false;
    session->exec = pv_exec_new(model, (int)session->threads, error);
    if (!session->exec || (!session->idle && !pv_session_device(session, error)) ||
        !choose_level(session, error) ||
        (session->profile && !pv_exec_measure(session->exec, error)))
        return false;
    for (size_t i = 0; i < session->sets.count; i++)
        if (!pv_config_set(&session->config, session->sets.items[i], error))
            return false;
    session->options = pv_options_new(model);
    session->loaded = pv_alloc((model->instance_count + 1u) * sizeof *session->loaded);
    session->random = pv_random_new(model, seed);
    return pv_options_apply(model, stage, &session->config, session->options, error);
}

void pv_session_close(PvSession *session)
{
    if (session->exec && session->exec->times)
        pv_exec_print_times(session->exec);
    pv_random_free(session->random);
    pv_config_free(&session->config);
    pv_exec_free(session->exec);
    free(session->options);
    free(session->loaded);
    pv_words_free(&session->weights);
    pv_words_free(&session->sets);
    *session = (PvSession){0};
}

bool pv_session_check_settings(PvSession *session, const char *stage, const PvWords *more,
                               PvError *error)
{
    PvWords names = {0};
    pv_options_names(session->model, stage, &names);
    for (size_t i = 0; more && i < more->count; i++)
        pv_words_add(&names, more->items[i]);
    bool good = pv_config_check_used(&session->config, names.items, names.count, error);
    pv_words_free(&names);
    return good;
}

bool pv_session_mount(PvSession *session, const char *command, const bool *needed,
                      const bool *may_miss, bool ema, PvError *error)
{
    const PvModel *model = session->model;
    pv_exec_expect(session->exec, needed, false);
    pv_exec_params_written(session->exec);
    uint32_t *wanted = pv_alloc((model->instance_count + 1u) * sizeof *wanted);
    uint32_t count = 0;
    for (uint32_t i = 0; i < model->instance_count; i++)
        if (needed[i] && model->instances[i].count > 0)
            wanted[count++] = i;
    bool good = session->weights.count == 0 ||
                pv_weights_mount(model, session->weights.items, session->weights.count, wanted,
                                 count, ema, session->exec->params, session->loaded, error);
    for (uint32_t i = 0; good && i < count; i++) {
        const char *name = model->instances[wanted[i]].name;
        if (session->loaded[wanted[i]] || (may_miss && may_miss[wanted[i]]))
            continue;
        good = pv_error(error, PV_WRONG, "%s needs the weights of '%s'", command, name);
        pv_error_hint(error, "--weights %s=FILE (.safetensors, .pth), or a checkpoint that has it",
                      name);
    }
    free(wanted);
    return good;
}

static bool is_missing(const PvSession *session, const bool *needed, uint32_t instance)
{
    return needed[instance] && !session->loaded[instance] &&
           session->model->instances[instance].count > 0;
}

bool pv_session_is_mounted(const PvSession *session, const bool *needed)
{
    for (uint32_t i = 0; i < session->model->instance_count; i++)
        if (is_missing(session, needed, i))
            return false;
    return true;
}

int64_t pv_session_missing_bytes(const PvSession *session, const bool *needed)
{
    int64_t bytes = 0;
    for (uint32_t i = 0; i < session->model->instance_count; i++)
        if (is_missing(session, needed, i))
            bytes += session->model->instances[i].size;
    return bytes;
}

void pv_instance_init(const PvModel *model, uint32_t instance, uint64_t seed, char *params)
{
    PvModel part = *model; // one with the parameters of the instance alone
    part.params = model->params + model->instances[instance].first;
    part.param_count = model->instances[instance].count;
    pv_random_init(&part, seed, params);
}

int pv_find_program(const PvModel *model, const char *name, PvEntryKind kind, PvError *error)
{
    PvWords names = {0};
    int found = -1;
    bool is_program = false;
    for (uint32_t i = 0; i < model->entry_count; i++) {
        const PvEntry *entry = &model->entries[i];
        is_program |= entry->kind == PV_PROGRAM && strcmp(entry->name, name) == 0;
        if (entry->kind != kind)
            continue;
        pv_words_add(&names, entry->name);
        if (strcmp(entry->name, name) == 0)
            found = (int)i;
    }
    if (found < 0 && is_program) {
        pv_error(error, PV_WRONG, "'%s' has no gradient: its result is not one number", name);
        pv_error_hint(error, "programs that have one: %s%s", names.count ? names.items[0] : "none",
                      names.count > 1 ? ", ..." : "");
    } else if (found < 0) {
        pv_unknown("program", name, names.items, names.count, PV_WRONG, error);
    }
    pv_words_free(&names);
    return found;
}
