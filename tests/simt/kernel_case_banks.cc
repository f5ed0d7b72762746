/* Bank conflicts of cases: a case with any fails, and says where; the golden file has the figures.
 *
 * The golden file has a line for each program and template, `PROGRAM TEMPLATE: 0`, or what is left:
 * `PROGRAM TEMPLATE: C of W wavefronts, PLACES`. A place is a function and how wide it reads or
 * writes; lines of source would change with every edit.
 */
#include "kernel_case_banks.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <map>
#include <set>
#include "kernel_case_image.h"
#include "simt.h"

struct Conflicts {
    uint64_t conflicts, wavefronts;
    std::map<std::string, uint64_t> places; // those with conflicts
};
static std::map<std::string, Conflicts> templates;

// The innermost function that an instruction is in, and the lines from there on outwards.
static void name_place(const void *pc, std::string *function, std::string *line)
{
    Dl_info info;
    char command[4600], text[512];
    if (!dladdr(pc, &info))
        return;
    snprintf(command, sizeof command, "addr2line -i -f -C -e '%s' 0x%zx 2>/dev/null",
             info.dli_fname, (size_t)((const char *)pc - (const char *)info.dli_fbase) - 1);
    FILE *pipe = popen(command, "r");
    for (int i = 0; pipe && fgets(text, sizeof text, pipe); i++) {
        std::string part(text, strcspn(text, i % 2 ? " \n" : "<(\n"));
        if (i == 0)
            *function = part.substr(part.rfind(':') + 1);
        else if (i % 2)
            *line += (i > 1 ? " from " : "") + part.substr(part.rfind('/') + 1);
    }
    if (pipe)
        pclose(pipe);
}

static bool asked_to(const char *what)
{
    const char *wish = getenv("PVDM_BANKS");
    return wish && strcmp(wish, what) == 0;
}

static std::string tell(const SimtBankSite &site)
{
    std::string function, line;
    name_place(site.pc, &function, &line);
    return std::to_string(site.conflicts) + " of " + std::to_string(site.wavefronts) +
           " wavefronts of " + std::to_string(site.bytes) +
           (site.write ? "-byte writes in " : "-byte reads in ") + function + ", " + line;
}

std::string add_banks(const char *file)
{
    size_t count;
    const SimtBankSite *sites = simt_bank_sites(&count), *worst = nullptr;
    Conflicts &sum = templates[file];
    for (size_t i = 0; i < count; i++) {
        const SimtBankSite &site = sites[i];
        sum.conflicts += site.conflicts;
        sum.wavefronts += site.wavefronts;
        if (site.conflicts == 0)
            continue;
        std::string function, line;
        name_place(site.pc, &function, &line);
        std::string how = function + (site.write ? " writes " : " reads ");
        sum.places[how + std::to_string(site.bytes)] += site.conflicts;
        if (!worst || site.conflicts > worst->conflicts)
            worst = &site;
        if (asked_to("print"))
            printf("%s: %s\n", file, tell(site).c_str());
    }
    return worst ? "bank conflicts: " + tell(*worst) : "";
}

/* ---- the golden file ---- */

static std::string golden_path(void)
{
    return std::string(root_folder()) + "/tests/simt/banks.txt";
}

static std::string describe(const std::string &file, const Conflicts &sum)
{
    std::string line = std::string(program_invocation_short_name) + " " + file + ": ";
    line += std::to_string(sum.conflicts);
    if (sum.conflicts == 0)
        return line + "\n";
    line += " of " + std::to_string(sum.wavefronts) + " wavefronts";
    for (const auto &place : sum.places)
        line += ", " + place.first + ": " + std::to_string(place.second);
    return line + "\n";
}

static std::string join(const std::set<std::string> &lines)
{
    std::string text;
    for (const std::string &line : lines)
        text += line;
    return text;
}

// The golden file's lines of this program, or of all others.
static std::set<std::string> golden_lines(bool own)
{
    std::string text = read_file(golden_path());
    std::string start = std::string(program_invocation_short_name) + " ";
    std::set<std::string> kept;
    for (size_t at = 0, end; at < text.size(); at = end) {
        end = std::min(text.find('\n', at), text.size() - 1) + 1;
        if ((text.compare(at, start.size(), start) == 0) == own)
            kept.insert(text.substr(at, end - at));
    }
    return kept;
}

// What matters of them: where nothing is left a line may be missing.
static std::set<std::string> without_zeros(const std::set<std::string> &lines)
{
    std::set<std::string> kept;
    for (const std::string &line : lines)
        if (line.size() < 4 || line.compare(line.size() - 4, 4, ": 0\n") != 0)
            kept.insert(line);
    return kept;
}

std::string check_banks(void)
{
    std::set<std::string> now, before = golden_lines(true), all = golden_lines(false);
    for (const auto &one : templates)
        now.insert(describe(one.first, one.second));
    if (!asked_to("update"))
        return without_zeros(now) == without_zeros(before)
                   ? ""
                   : "banks.txt has\n" + join(before) + "and should have\n" + join(now);
    all.insert(now.begin(), now.end());
    FILE *file = fopen(golden_path().c_str(), "w");
    bool written = file && fputs(join(all).c_str(), file) >= 0;
    return (file && fclose(file) == 0 && written) ? "" : "tests/simt/banks.txt cannot be written";
}
