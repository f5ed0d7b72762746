// What an executable is to run on: --target and --arch.
#include <stdlib.h>
#include <string.h>

#include "codegen/codegen.h"

// Calls `take` with each word of a comma list; false: one of them is not known, or there is none.
static bool each_word(const char *list, bool (*take)(const char *word, Targets *targets),
                      Targets *targets)
{
    char word[32];
    for (const char *at = list;;) {
        size_t length = strcspn(at, ",");
        if (length == 0 || length >= sizeof word)
            return false;
        memcpy(word, at, length);
        word[length] = '\0';
        if (!take(word, targets))
            return false;
        if (!at[length])
            return true;
        at += length + 1;
    }
}

static bool take_target(const char *word, Targets *targets)
{
    bool *target = strcmp(word, "cpu") == 0    ? &targets->cpu
                   : strcmp(word, "cuda") == 0 ? &targets->cuda
                   : strcmp(word, "simt") == 0 ? &targets->simt
                                               : NULL;
    if (target)
        *target = true;
    return target != NULL;
}

bool parse_targets(const char *list, Targets *targets)
{
    targets->cpu = targets->cuda = targets->simt = false;
    return each_word(list, take_target, targets);
}

// "sm_80", "sm_90a", "ptx"
static bool take_arch(const char *word, Targets *targets)
{
    if (strcmp(word, "ptx") == 0) {
        targets->ptx = true;
        return true;
    }
    char *end;
    if (strncmp(word, "sm_", 3) != 0 || word[3] < '1' || word[3] > '9')
        return false;
    unsigned long number = strtoul(word + 3, &end, 10);
    bool specific = *end == 'a';
    if (end[specific] || number < 80 || number > 999 || targets->arch_count == MAX_ARCHS)
        return false;
    targets->archs[targets->arch_count++] = (CudaArch){(uint32_t)number, specific};
    return true;
}

bool parse_archs(const char *list, Targets *targets)
{
    targets->arch_count = 0;
    targets->ptx = false;
    return each_word(list, take_arch, targets) && (targets->arch_count > 0 || targets->ptx);
}
