// link: pvdm32 jansson yaml png jpeg minizip z dl
// Any bytes are read as YAML and as KEY=VALUE; every setting is then asked for as every type.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool fine, PvError *error)
{
    if (fine != (error->text == NULL))
        abort();
    pv_error_free(error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const known[] = {"batch", "steps", "train.lr"};
    PvError error = {0};
    PvConfig config = {0};
    check(pv_config_parse(&config, "fuzz.yaml", (const char *)data, size, &error), &error);
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    check(pv_config_set(&config, text, &error), &error);
    check(pv_config_check_used(&config, known, 3, &error), &error);
    for (size_t i = 0; i < config.count; i++) {
        const char *key = config.items[i].key, *word;
        int64_t integer;
        double real;
        bool truth;
        check(pv_config_int(&config, key, &integer, &error), &error);
        check(pv_config_real(&config, key, &real, &error), &error);
        check(pv_config_bool(&config, key, &truth, &error), &error);
        check(pv_config_text(&config, key, &word, &error), &error);
        for (size_t k = 0; k < config.items[i].count; k++)
            check(pv_setting_real(&config.items[i], k, &real, &error), &error);
    }
    check(pv_config_check_used(&config, known, 3, &error), &error);
    pv_config_free(&config);
    free(text);
    return 0;
}
