/* The compiled programs of cases: shared objects of the emulator, and images made
 * ahead for a driver.
 *
 * PVDM_IMAGES names a folder where a driver's images are looked for, by a hash of their text. With
 * PVDM_MAKE_IMAGES a test runs nothing and fills that folder: for a GPU's architecture (sm_90a) by
 * NVRTC, for a driver of tests (its path) by the C++ compiler. PVDM_SAMPLE=1 leaves all but the
 * first case of each template, PVDM_CASES_FROM=n those before the n-th.
 */
#pragma once
#include <stdint.h>
#include <string>
extern "C" {
#include "kernel_choice.h"
}

// Where the sources lie: those that this was built from, or a copy of them elsewhere.
const char *root_folder(void);
std::string read_file(const std::string &path); // "" where there is none
// Of a text and of all files that it includes.
uint64_t hash_program(uint64_t hash, const std::string &text);
// Path of a program as a shared object: from an earlier run, or compiled. "": the compiler failed.
// `driver`: the one whose emulator it calls, "": this executable's.
std::string shared_object(const std::string &text, const std::string &name, bool race,
                          const std::string &driver);

// Whether a template's turn has come, of those cases that are asked for.
bool sample_wants(const KernelChoice &choice);
bool making_images(void);
// One more to be made; those that the architecture cannot run are not.
void add_image(const KernelChoice &choice);
// Makes all that were added. "" or what is wrong.
std::string make_images(void);
// An image that was made ahead, or "".
std::string find_image(const KernelChoice &choice);
