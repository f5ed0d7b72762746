/* Programs of cases: what is compiled where it runs, and what was compiled ahead. */
#include "kernel_case_image.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <atomic>
#include <set>
#include <thread>
#include <vector>
extern "C" {
#define _Noreturn [[noreturn]]
#include "codegen/nvrtc.h"
}

const char *root_folder(void)
{
    const char *other = getenv("PVDM_ROOT");
    return other && *other ? other : SIMT_ROOT;
}

/* ---- shared objects ---- */

static uint64_t hash_text(uint64_t hash, const std::string &text)
{
    for (char c : text)
        hash = (hash ^ (uint8_t)c) * 1099511628211ull;
    return hash;
}

std::string read_file(const std::string &path)
{
    std::string text;
    char part[65536];
    FILE *file = fopen(path.c_str(), "r");
    for (size_t count; file && (count = fread(part, 1, sizeof part, file)) > 0;)
        text.append(part, count);
    if (file)
        fclose(file);
    return text;
}

static uint64_t hash_included(uint64_t hash, const std::string &text, int depth)
{
    static const char *const folders[] = {"/codegen/cuda/", "/codegen/", "/tests/simt/",
                                          "/runtime/"};
    hash = hash_text(hash, text);
    for (size_t at = 0; depth < 6 && (at = text.find("#include \"", at)) != std::string::npos;) {
        at += 10;
        std::string name = text.substr(at, text.find('"', at) - at);
        for (const char *folder : folders) {
            std::string file = read_file(std::string(root_folder()) + folder + name);
            if (!file.empty()) {
                hash = hash_included(hash, file, depth + 1);
                break;
            }
        }
    }
    return hash;
}

uint64_t hash_program(uint64_t hash, const std::string &text)
{
    return hash_included(hash, text, 0);
}

static int run_command(const std::string &command)
{
    fflush(stdout);
    return system(command.c_str());
}

std::string shared_object(const std::string &text, const std::string &name, bool race,
                          const std::string &driver)
{
    std::string folder = std::string(root_folder()) + "/out/tests", root = root_folder();
    mkdir((root + "/out").c_str(), 0777);
    mkdir(folder.c_str(), 0777);
    const char *checks = driver.empty() ? "-O2" : "-O1";
    if (SIMT_ASAN)
        checks = "-O1 -g -fsanitize=address,undefined";
    else if (race) // banks.cc tells why
        checks = "-O1 -g1 -fno-tree-sra -fno-reorder-blocks -fsanitize=thread "
                 "-fsanitize-coverage=trace-pc";
    std::string library = driver.empty() ? "" : " " + driver;
    char suffix[32];
    snprintf(suffix, sizeof suffix, "-%016llx",
             (unsigned long long)hash_program(
                 hash_text(14695981039346656037ull, checks + library), text));
    std::string path = folder + "/" + name + suffix, finished = path + ".so";
    if (access(finished.c_str(), R_OK) == 0)
        return finished;
    path += "-" + std::to_string(getpid());
    FILE *file = fopen((path + ".cc").c_str(), "w");
    if (!file || fputs(text.c_str(), file) < 0 || fclose(file) != 0)
        return "";
    std::string command = std::string(SIMT_CXX) +
                          " -std=c++17 -fPIC -Wall -Wextra -Wshadow -Werror "
                          "-Wno-psabi " +
                          checks + " -I" + root + "/codegen/cuda -I" + root + "/codegen -I" + root +
                          "/tests/simt -iquote " + root + "/runtime";
    bool good = run_command(command + " -c " + path + ".cc -o " + path + ".o") == 0 &&
                run_command(std::string(SIMT_CXX) + " -shared " + path + ".o -o " + path + ".so" +
                            library) == 0 &&
                rename((path + ".so").c_str(), finished.c_str()) == 0;
    unlink((path + ".o").c_str());
    unlink((path + ".cc").c_str());
    return good ? finished : "";
}

/* ---- images made ahead ---- */

struct Wanted {
    std::string path;
    KernelChoice choice; // of which the text is our own
};
static std::vector<Wanted> wanted_images;

static std::string setting(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

bool making_images(void)
{
    return !setting("PVDM_MAKE_IMAGES").empty();
}

static bool is_gpu(const std::string &target)
{
    return target.compare(0, 3, "sm_") == 0;
}

bool sample_wants(const KernelChoice &choice)
{
    static std::set<std::string> seen;
    return setting("PVDM_SAMPLE") != "1" ||
           seen.insert(choice.file + std::string(choice.on_90a ? " 90a" : "")).second;
}

static std::string image_path(const KernelChoice &choice)
{
    char name[512];
    snprintf(name, sizeof name, "/%s-%016llx", choice.symbol,
             (unsigned long long)hash_text(14695981039346656037ull, choice.text));
    return setting("PVDM_IMAGES") + name;
}

std::string find_image(const KernelChoice &choice)
{
    return setting("PVDM_IMAGES").empty() ? "" : read_file(image_path(choice));
}

void add_image(const KernelChoice &choice)
{
    std::string target = setting("PVDM_MAKE_IMAGES"), path = image_path(choice);
    for (const Wanted &known : wanted_images)
        if (known.path == path)
            return;
    if (choice.on_90a && is_gpu(target) && target != "sm_90a")
        return;
    wanted_images.push_back({path, choice});
    wanted_images.back().choice.text = strdup(choice.text);
}

static bool write_file(const std::string &path, const void *content, size_t bytes)
{
    FILE *file = fopen(path.c_str(), "w");
    bool good = file && fwrite(content, 1, bytes, file) == bytes;
    return (!file || fclose(file) == 0) && good;
}

static std::string make_cubins(const std::string &target)
{
    if (const char *missing = nvrtc_open())
        return missing;
    std::vector<NvrtcJob> jobs(wanted_images.size());
    for (size_t i = 0; i < jobs.size(); i++)
        kernel_job(&wanted_images[i].choice, root_folder(), target.c_str(), &jobs[i]);
    nvrtc_compile(jobs.data(), (int)jobs.size(), (int)std::thread::hardware_concurrency());
    std::string wrong;
    for (size_t i = 0; i < jobs.size(); i++) {
        if (!jobs[i].done)
            wrong +=
                std::string(jobs[i].name) + ": " + (jobs[i].log ? jobs[i].log : "not compiled");
        else if (!write_file(wanted_images[i].path, jobs[i].cubin, jobs[i].cubin_bytes))
            wrong += "cannot write " + wanted_images[i].path + "\n";
        nvrtc_free_job(&jobs[i]);
    }
    return wrong;
}

static std::string make_shared_objects(const std::string &driver)
{
    std::atomic<size_t> next(0), failures(0);
    auto work = [&] {
        for (size_t i; (i = next++) < wanted_images.size();) {
            const Wanted &one = wanted_images[i];
            std::string object =
                read_file(shared_object(one.choice.text, one.choice.symbol, false, driver));
            if (object.empty() || !write_file(one.path, object.data(), object.size()))
                failures++;
        }
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < std::thread::hardware_concurrency(); i++)
        others.emplace_back(work);
    work();
    for (std::thread &other : others)
        other.join();
    return failures ? std::to_string(failures) + " images could not be made" : "";
}

std::string make_images(void)
{
    std::string target = setting("PVDM_MAKE_IMAGES");
    if (setting("PVDM_IMAGES").empty())
        return "PVDM_IMAGES names no folder";
    std::string wrong = is_gpu(target) ? make_cubins(target) : make_shared_objects(target);
    if (wrong.empty())
        printf("%zu images\n", wanted_images.size());
    return wrong;
}
