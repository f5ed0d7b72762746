// Rungs: the optimizations of plans that can be switched on one by one, and what the levels -O0,
// -O1 and -O2 are in terms of them.
#include <string.h>

#include "compiler/plan.h"

static const struct {
    Rung rung;
    const char *name;
} rungs[] = {
    {RUNG_ELEMENTWISE, "elementwise"}, {RUNG_NORMS, "norms"},
    {RUNG_EPILOGUES, "epilogues"},     {RUNG_ATTENTION, "attention"},
    {RUNG_PLACEMENT, "placement"},     {RUNG_BATCHING, "batching"},
    {RUNG_TABLES, "tables"},           {RUNG_MEMORY, "memory"},
    {RUNG_WINOGRAD, "winograd"},       {RUNG_SPLIT, "split"},
};
enum { RUNG_COUNT = sizeof rungs / sizeof *rungs };

#define LOCAL_RUNGS (RUNG_ELEMENTWISE | RUNG_NORMS | RUNG_EPILOGUES | RUNG_ATTENTION)
const LadderStep ladder[LADDER_STEPS] = {
    {"unfused", 0, 0},
    {"+ elementwise", -1, RUNG_ELEMENTWISE},
    {"+ norms", -1, RUNG_ELEMENTWISE | RUNG_NORMS},
    {"+ epilogues", -1, RUNG_ELEMENTWISE | RUNG_NORMS | RUNG_EPILOGUES},
    {"+ attention", 1, LOCAL_RUNGS},
    {"+ placement", -1, LOCAL_RUNGS | RUNG_PLACEMENT},
    {"+ siblings", -1, LOCAL_RUNGS | RUNG_PLACEMENT | RUNG_BATCHING},
    {"+ tables", -1, LOCAL_RUNGS | RUNG_PLACEMENT | RUNG_BATCHING | RUNG_TABLES},
    {"+ winograd", -1, RUNG_ALL & ~(RUNG_SPLIT | RUNG_MEMORY)},
    {"+ split", -1, RUNG_ALL & ~RUNG_MEMORY},
    {"all", 2, RUNG_ALL},
};

uint32_t level_rungs(int level)
{
    return level == 0   ? 0
           : level == 1 ? LOCAL_RUNGS
                        : RUNG_ALL;
}

bool parse_rungs(const char *text, uint32_t *bits)
{
    *bits = 0;
    while (*text) {
        size_t length = strcspn(text, ",");
        uint32_t found = length == 3 && strncmp(text, "all", 3) == 0 ? RUNG_ALL : 0;
        for (uint32_t i = 0; i < RUNG_COUNT; i++)
            if (strlen(rungs[i].name) == length && strncmp(text, rungs[i].name, length) == 0)
                found = rungs[i].rung;
        if (!found && !(length == 4 && strncmp(text, "none", 4) == 0))
            return false;
        *bits |= found;
        text += length + (text[length] == ',');
    }
    return true;
}
