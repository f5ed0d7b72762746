// YAML and KEY=VALUE to a flat list of settings. See config.h.
//
// libyaml gives events; a walk over them keeps the dotted path of the mapping it is in. What the
// flat form has no place for (aliases, lists in lists, mappings in lists, keys that are no scalars)
// is an error with its line.
#include "runtime/config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "runtime/file.h"

enum { MAX_FILE = 1 << 20, MAX_DEPTH = 16 };

// ---- the list ----

static void free_setting(PvSetting *setting)
{
    for (size_t i = 0; i < setting->count; i++)
        free(setting->values[i]);
    free(setting->values);
    free(setting->key);
    free(setting->place);
}

void pv_config_free(PvConfig *config)
{
    for (size_t i = 0; i < config->count; i++)
        free_setting(&config->items[i]);
    free(config->items);
    *config = (PvConfig){0};
}

static PvSetting *look_up(PvConfig *config, const char *key)
{
    for (size_t i = 0; i < config->count; i++) {
        if (!strcmp(config->items[i].key, key))
            return &config->items[i];
    }
    return NULL;
}

// A setting without values yet, in place of an earlier one of the key. `place` is copied.
static PvSetting *new_setting(PvConfig *config, const char *key, const char *place)
{
    PvSetting *setting = look_up(config, key);
    if (setting) {
        free_setting(setting);
    } else {
        config->items =
            pv_grow(config->items, &config->capacity, config->count, sizeof *config->items);
        setting = &config->items[config->count++];
    }
    *setting = (PvSetting){.key = pv_strdup(key), .place = pv_strdup(place)};
    return setting;
}

static void add_value(PvSetting *setting, const char *text)
{
    char **values = realloc(setting->values, (setting->count + 1) * sizeof *values);
    if (!values)
        pv_fail(PV_MACHINE, "not enough memory");
    setting->values = values;
    values[setting->count++] = pv_strdup(text);
}

PvSetting *pv_config_find(PvConfig *config, const char *key)
{
    PvSetting *setting = look_up(config, key);
    if (setting)
        setting->used = true;
    return setting;
}

// ---- YAML ----

typedef struct {
    PvConfig *config; // settings of this file alone
    const char *name; // of the file
    yaml_parser_t parser;
    PvError *error;
} Reader;

static bool fail_at(Reader *reader, yaml_mark_t mark, const char *what)
{
    return pv_error(reader->error, PV_WRONG, "%s:%zu:%zu: %s", reader->name, mark.line + 1,
                    mark.column + 1, what);
}

static bool next_event(Reader *reader, yaml_event_t *event)
{
    if (yaml_parser_parse(&reader->parser, event))
        return true;
    const char *problem = reader->parser.problem;
    return fail_at(reader, reader->parser.problem_mark, problem ? problem : "not readable as YAML");
}

// The text of a scalar event, or NULL with an error (a 0 byte, something else than a scalar).
static const char *scalar_text(Reader *reader, const yaml_event_t *event, const char *expected)
{
    const char *text = (const char *)event->data.scalar.value;
    if (event->type != YAML_SCALAR_EVENT || strlen(text) != event->data.scalar.length) {
        char what[80];
        snprintf(what, sizeof what, "expected %s", expected);
        fail_at(reader, event->start_mark, what);
        return NULL;
    }
    return text;
}

static bool read_list(Reader *reader, PvSetting *setting)
{
    setting->is_list = true;
    for (;;) {
        yaml_event_t event;
        if (!next_event(reader, &event))
            return false;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        const char *text = end ? NULL : scalar_text(reader, &event, "a scalar in the list");
        if (text)
            add_value(setting, text);
        yaml_event_delete(&event);
        if (end || !text)
            return end;
    }
}

static bool read_mapping(Reader *reader, const char *path, int depth);

// The value of `key`, whose first event is `event` (deleted by the caller).
static bool read_value(Reader *reader, const char *key, const yaml_event_t *event, int depth)
{
    if (event->type == YAML_MAPPING_START_EVENT)
        return read_mapping(reader, key, depth + 1);
    if (event->type != YAML_SCALAR_EVENT && event->type != YAML_SEQUENCE_START_EVENT)
        return fail_at(reader, event->start_mark, "expected a scalar, a list or a mapping");
    char *place = pv_printf("%s:%zu", reader->name, event->start_mark.line + 1);
    const PvSetting *earlier = look_up(reader->config, key);
    if (earlier) {
        pv_error(reader->error, PV_WRONG, "%s: '%s' is there twice, also at %s", place, key,
                 earlier->place);
        free(place);
        return false;
    }
    PvSetting *setting = new_setting(reader->config, key, place);
    free(place);
    if (event->type == YAML_SEQUENCE_START_EVENT)
        return read_list(reader, setting);
    const char *text = scalar_text(reader, event, "text without 0 bytes");
    if (text)
        add_value(setting, text);
    return text != NULL;
}

// The keys and values of a mapping whose start was read; path: its dotted key, or "".
static bool read_mapping(Reader *reader, const char *path, int depth)
{
    for (;;) {
        yaml_event_t key_event, event;
        if (!next_event(reader, &key_event))
            return false;
        if (key_event.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&key_event);
            return true;
        }
        const char *name = scalar_text(reader, &key_event, "a key");
        if (name && depth > MAX_DEPTH) {
            fail_at(reader, key_event.start_mark, "mappings are nested too deeply");
            name = NULL;
        }
        char *key = name ? pv_printf("%s%s%s", path, *path ? "." : "", name) : NULL;
        yaml_event_delete(&key_event);
        if (!key)
            return false;
        bool fine = next_event(reader, &event);
        if (fine) {
            fine = read_value(reader, key, &event, depth);
            yaml_event_delete(&event);
        }
        free(key);
        if (!fine)
            return false;
    }
}

// The one document, a mapping or empty, and nothing after it.
static bool read_stream(Reader *reader)
{
    bool started = false, done = false;
    while (!done) {
        yaml_event_t event;
        if (!next_event(reader, &event))
            return false;
        bool fine = true;
        switch ((int)event.type) {
        case YAML_STREAM_END_EVENT:
            done = true;
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (started)
                fine = fail_at(reader, event.start_mark, "a second document");
            started = true;
            break;
        case YAML_MAPPING_START_EVENT:
            fine = read_mapping(reader, "", 1);
            break;
        case YAML_SEQUENCE_START_EVENT:
        case YAML_ALIAS_EVENT:
            fine = fail_at(reader, event.start_mark, "expected 'key: value' lines");
            break;
        case YAML_SCALAR_EVENT:
            if (event.data.scalar.length > 0)
                fine = fail_at(reader, event.start_mark, "expected 'key: value' lines");
            break;
        default:
            break;
        }
        yaml_event_delete(&event);
        if (!fine)
            return false;
    }
    return true;
}

bool pv_config_parse(PvConfig *config, const char *name, const char *text, size_t size,
                     PvError *error)
{
    PvConfig own = {0}; // a key twice in one file is an error, over files it is not
    Reader reader = {.config = &own, .name = name, .error = error};
    if (!yaml_parser_initialize(&reader.parser))
        return pv_error(error, PV_MACHINE, "not enough memory to read %s", name);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, size);
    bool fine = read_stream(&reader);
    yaml_parser_delete(&reader.parser);
    for (size_t i = 0; i < own.count && fine; i++) {
        PvSetting *setting = new_setting(config, own.items[i].key, own.items[i].place);
        setting->is_list = own.items[i].is_list;
        for (size_t k = 0; k < own.items[i].count; k++)
            add_value(setting, own.items[i].values[k]);
    }
    pv_config_free(&own);
    return fine;
}

bool pv_config_read(PvConfig *config, const char *path, PvError *error)
{
    size_t size;
    char *text = pv_read_file(path, MAX_FILE, &size, error);
    if (!text)
        return false;
    bool fine = pv_config_parse(config, path, text, size, error);
    free(text);
    return fine;
}

// ---- KEY=VALUE ----

static bool parse_real(const char *text, double *out);

// Numbers with commas between them, and nothing else?
static bool is_number_list(const char *text)
{
    char *copy = pv_strdup(text), *rest = copy;
    const char *part;
    bool numbers = strchr(text, ',') != NULL;
    double ignored;
    while (numbers && (part = strsep(&rest, ",")))
        numbers = parse_real(part, &ignored);
    free(copy);
    return numbers;
}

bool pv_config_set(PvConfig *config, const char *assignment, PvError *error)
{
    const char *equals = strchr(assignment, '=');
    if (!equals || equals == assignment) {
        pv_error(error, PV_USAGE, "--set %s: expected KEY=VALUE", assignment);
        return false;
    }
    char *key = pv_printf("%.*s", (int)(equals - assignment), assignment);
    char *place = pv_printf("--set %s", assignment);
    const char *value = equals + 1;
    bool fine = true;
    if (value[0] == '[' || is_number_list(value)) {
        bool bare = value[0] != '[';
        char *yaml = pv_printf("v: %s%s%s", bare ? "[" : "", value, bare ? "]" : "");
        PvConfig list = {0};
        fine = pv_config_parse(&list, place, yaml, strlen(yaml), error);
        if (!fine)
            error->status = PV_USAGE;
        if (fine) {
            PvSetting *setting = new_setting(config, key, place);
            setting->is_list = true;
            for (size_t i = 0; list.count > 0 && i < list.items[0].count; i++)
                add_value(setting, list.items[0].values[i]);
        }
        pv_config_free(&list);
        free(yaml);
    } else {
        add_value(new_setting(config, key, place), value);
    }
    free(key);
    free(place);
    return fine;
}

// ---- typed values ----

static bool wrong_type(const PvSetting *setting, const char *expected, const char *found,
                       PvError *error)
{
    return pv_error(error, PV_WRONG, "%s: %s: expected %s, found '%.80s'", setting->place,
                    setting->key, expected, found);
}

// Digits may have '_' between them.
static bool parse_real(const char *text, double *out)
{
    char copy[64];
    size_t length = 0;
    while (isspace((unsigned char)*text))
        text++;
    const char *digit = text + (*text == '-' || *text == '+');
    if (!isdigit((unsigned char)*digit) && *digit != '.')
        return false;
    if (digit[0] == '0' && (digit[1] == 'x' || digit[1] == 'X'))
        return false;
    for (; *text && length + 1 < sizeof copy; text++) {
        if (*text != '_')
            copy[length++] = *text;
    }
    while (length > 0 && isspace((unsigned char)copy[length - 1]))
        length--;
    copy[length] = 0;
    char *end;
    double value = strtod(copy, &end);
    if (*text || end == copy || *end || !isfinite(value))
        return false;
    *out = value;
    return true;
}

// An integer, also in the form 1e6.
static bool parse_int(const char *text, int64_t *out)
{
    char copy[64];
    size_t length = 0;
    double real;
    if (!parse_real(text, &real))
        return false;
    for (; *text && length + 1 < sizeof copy; text++) {
        if (*text != '_')
            copy[length++] = *text;
    }
    copy[length] = 0;
    char *end;
    errno = 0;
    long long value = strtoll(copy, &end, 10);
    while (isspace((unsigned char)*end))
        end++;
    if (*end == 0) {
        *out = value;
        return errno == 0;
    }
    if (real != floor(real) || fabs(real) > 0x1p53)
        return false;
    *out = (int64_t)real;
    return true;
}

bool pv_setting_int(const PvSetting *setting, size_t i, int64_t *out, PvError *error)
{
    if (i < setting->count && parse_int(setting->values[i], out))
        return true;
    return wrong_type(setting, "an integer", i < setting->count ? setting->values[i] : "", error);
}

bool pv_setting_real(const PvSetting *setting, size_t i, double *out, PvError *error)
{
    if (i < setting->count && parse_real(setting->values[i], out))
        return true;
    return wrong_type(setting, "a number", i < setting->count ? setting->values[i] : "", error);
}

bool pv_setting_bool(const PvSetting *setting, size_t i, bool *out, PvError *error)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t k = 0; i < setting->count && k < sizeof words / sizeof words[0]; k++) {
        if (strcasecmp(setting->values[i], words[k]) != 0)
            continue;
        *out = k % 2 == 1;
        return true;
    }
    return wrong_type(setting, "true or false", i < setting->count ? setting->values[i] : "",
                      error);
}

// The setting of a key that must be a scalar. false: it is a list; *out NULL: it is not there.
static bool find_scalar(PvConfig *config, const char *key, PvSetting **out, PvError *error)
{
    *out = pv_config_find(config, key);
    if (!*out || (!(*out)->is_list && (*out)->count == 1))
        return true;
    return wrong_type(*out, "one value", "a list", error);
}

bool pv_config_int(PvConfig *config, const char *key, int64_t *out, PvError *error)
{
    PvSetting *setting;
    if (!find_scalar(config, key, &setting, error))
        return false;
    return !setting || pv_setting_int(setting, 0, out, error);
}

bool pv_config_real(PvConfig *config, const char *key, double *out, PvError *error)
{
    PvSetting *setting;
    if (!find_scalar(config, key, &setting, error))
        return false;
    return !setting || pv_setting_real(setting, 0, out, error);
}

bool pv_config_bool(PvConfig *config, const char *key, bool *out, PvError *error)
{
    PvSetting *setting;
    if (!find_scalar(config, key, &setting, error))
        return false;
    return !setting || pv_setting_bool(setting, 0, out, error);
}

bool pv_config_text(PvConfig *config, const char *key, const char **out, PvError *error)
{
    PvSetting *setting;
    if (!find_scalar(config, key, &setting, error))
        return false;
    if (setting)
        *out = setting->values[0];
    return true;
}

// ---- names nobody knows ----

// Levenshtein's distance of two words of at most 63 letters; longer ones are far apart.
static size_t distance(const char *a, const char *b)
{
    size_t row[64], n = strlen(a), m = strlen(b);
    if (n > 63 || m > 63)
        return 64;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            size_t least = row[j] < row[j - 1] ? row[j] : row[j - 1];
            row[j] = change < least + 1 ? change : least + 1;
        }
    }
    return row[m];
}

const char *pv_nearest(const char *word, const char *const *known, size_t known_count)
{
    const char *nearest = NULL;
    size_t least = strlen(word) / 3 + 2; // must be nearer than this
    for (size_t i = 0; i < known_count; i++) {
        size_t here = distance(word, known[i]);
        if (here >= least)
            continue;
        least = here;
        nearest = known[i];
    }
    return nearest;
}

bool pv_config_check_used(const PvConfig *config, const char *const *known, size_t known_count,
                          PvError *error)
{
    bool fine = true;
    for (size_t i = 0; i < config->count; i++) {
        const PvSetting *setting = &config->items[i];
        if (setting->used)
            continue;
        if (fine)
            pv_error(error, PV_WRONG, "%s: unknown setting '%s'", setting->place, setting->key);
        else
            pv_error_append(error, "\n  %s: unknown setting '%s'", setting->place, setting->key);
        const char *nearest = pv_nearest(setting->key, known, known_count);
        const char *dot = strchr(setting->key, '.'); // after a stage's name
        if (!nearest && dot)
            nearest = pv_nearest(dot + 1, known, known_count);
        if (nearest && !error->hint)
            pv_error_hint(error, "did you mean '%s'?", nearest);
        fine = false;
    }
    return fine;
}
