// Parsing of command lines from a table of flags, and the help text made from the same table.
//
// A word that is no flag is positional while the command still takes one; after that it belongs to
// the last flag that takes several words, so that `run denoise --weights a b` works. Flags are
// written "--name value" or "--name=value".
#include "runtime/command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/config.h"

void pv_words_add(PvWords *words, const char *word)
{
    words->items = pv_grow(words->items, &words->capacity, words->count, sizeof *words->items);
    words->items[words->count++] = word;
}

void pv_words_take(PvWords *words, char *word)
{
    words->owned =
        pv_grow(words->owned, &words->owned_capacity, words->owned_count, sizeof *words->owned);
    words->owned[words->owned_count++] = word;
    pv_words_add(words, word);
}

void pv_words_free(PvWords *words)
{
    for (size_t i = 0; i < words->owned_count; i++)
        free(words->owned[i]);
    free(words->owned);
    free(words->items);
    *words = (PvWords){0};
}

bool pv_unknown(const char *what, const char *name, const char *const *names, size_t count,
                PvStatus status, PvError *error)
{
    const char *near = pv_nearest(name, names, count);
    pv_error(error, status, "unknown %s '%s'", what, name);
    if (near)
        pv_error_append(error, "; did you mean '%s'?", near);
    if (count == 0)
        return pv_error_hint(error, "this model has none");
    char *all = pv_strdup(names[0]);
    for (size_t i = 1; i < count && i < 40; i++) {
        char *longer = pv_printf("%s, %s", all, names[i]);
        free(all);
        all = longer;
    }
    pv_error_hint(error, "there %s %s%s", count == 1 ? "is" : "are", all,
                  count > 40 ? ", ..." : "");
    free(all);
    return false;
}

static void print_help(const PvUsage *usage)
{
    printf("usage: %s %s%s\n\n%s\n", pv_program(), usage->line,
           usage->flag_count > 0 ? " [FLAGS]" : "", usage->about);
    if (usage->flag_count > 0)
        printf("\nflags:\n");
    for (size_t i = 0; i < usage->flag_count; i++) {
        const PvFlag *flag = &usage->flags[i];
        char left[80];
        snprintf(left, sizeof left, "%s%s%s", flag->name, flag->value ? " " : "",
                 flag->value ? flag->value : "");
        if (strlen(left) > 27)
            printf("  %s\n  %-28s%s\n", left, "", flag->help);
        else
            printf("  %-28s%s\n", left, flag->help);
    }
    for (size_t i = 0; i < usage->setting_count; i++)
        printf("%s --%s", i == 0 ? "\noptions of the model:" : "", usage->setting_names[i]);
    if (usage->setting_count > 0)
        printf("\n");
    exit(fflush(stdout) == 0 ? PV_DONE : PV_MACHINE);
}

static bool read_int(const char *flag, const char *text, int64_t *out, PvError *error)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end)
        return pv_error(error, PV_USAGE, "%s: expected a whole number, found '%s'", flag, text);
    *out = value;
    return true;
}

static bool read_real(const char *flag, const char *text, double *out, PvError *error)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end)
        return pv_error(error, PV_USAGE, "%s: expected a number, found '%s'", flag, text);
    *out = value;
    return true;
}

static bool take_value(const PvFlag *flag, const char *text, PvError *error)
{
    switch (flag->kind) {
    case PV_FLAG_BOOL:
        return pv_error(error, PV_USAGE, "%s takes no value", flag->name);
    case PV_FLAG_TEXT:
        *(const char **)flag->to = text;
        return true;
    case PV_FLAG_INT:
        return read_int(flag->name, text, flag->to, error);
    case PV_FLAG_REAL:
        return read_real(flag->name, text, flag->to, error);
    case PV_FLAG_WORDS:
        pv_words_add(flag->to, text);
        return true;
    }
    return false;
}

static const PvFlag *find_flag(const PvUsage *usage, const char *name, size_t length)
{
    for (size_t i = 0; i < usage->flag_count; i++)
        if (strlen(usage->flags[i].name) == length &&
            strncmp(usage->flags[i].name, name, length) == 0)
            return &usage->flags[i];
    return NULL;
}

static bool unknown_flag(const PvUsage *usage, const char *name, PvError *error)
{
    PvWords names = {0};
    for (size_t i = 0; i < usage->flag_count; i++)
        pv_words_add(&names, usage->flags[i].name);
    for (size_t i = 0; i < usage->setting_count; i++)
        pv_words_take(&names, pv_printf("--%s", usage->setting_names[i]));
    pv_unknown("flag", name, names.items, names.count, PV_USAGE, error);
    pv_words_free(&names);
    return false;
}

// "--eta 0.5" of a model's option.
static bool take_setting(const PvUsage *usage, const char *name, size_t length, const char *value,
                         PvError *error)
{
    for (size_t i = 0; usage->settings && i < usage->setting_count; i++) {
        const char *option = usage->setting_names[i];
        if (length != strlen(option) + 2 || strncmp(name + 2, option, length - 2) != 0)
            continue;
        if (!value)
            return pv_error(error, PV_USAGE, "--%s needs a value", option);
        pv_words_take(usage->settings, pv_printf("%s=%s", option, value));
        return true;
    }
    char *bare = pv_printf("%.*s", (int)length, name);
    unknown_flag(usage, bare, error);
    free(bare);
    return false;
}

bool pv_usage_parse(const PvUsage *usage, int argc, char **argv, PvWords *words, PvError *error)
{
    const PvFlag *several = NULL; // the flag that takes further words
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
            print_help(usage);
        if (word[0] != '-' || word[1] == 0) {
            if (words->count < usage->most)
                pv_words_add(words, word);
            else if (several)
                pv_words_add(several->to, word);
            else
                return pv_error(error, PV_USAGE, "unexpected word '%s'", word);
            continue;
        }
        const char *equals = word[1] == '-' ? strchr(word, '=') : NULL;
        size_t length = equals ? (size_t)(equals - word) : strlen(word);
        const PvFlag *flag = find_flag(usage, word, length);
        several = flag && flag->kind == PV_FLAG_WORDS ? flag : NULL;
        if (flag && flag->kind == PV_FLAG_BOOL && !equals) {
            *(bool *)flag->to = true;
            continue;
        }
        const char *value = equals ? equals + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!flag) {
            if (word[1] != '-' || !take_setting(usage, word, length, value, error))
                return error->text ? false : unknown_flag(usage, word, error);
        } else if (!value) {
            return pv_error(error, PV_USAGE, "%s needs %s", flag->name, flag->value);
        } else if (!take_value(flag, value, error)) {
            return false;
        }
    }
    if (words->count < usage->least) {
        pv_error(error, PV_USAGE, "too few words");
        return pv_error_hint(error, "usage: %s %s; --help tells more", pv_program(), usage->line);
    }
    return true;
}
