// What the cases of a program cost in bank conflicts, by template and place.
#pragma once
#include <string>

// Takes what simt_bank_sites has of a launch of template `file`. Returns what is wrong with it, ""
// if nothing is.
std::string add_banks(const char *file);

// Compares the figures of all templates with this program's lines of tests/simt/banks.txt,
// or, where PVDM_BANKS is "update", writes them. "" or what differs. PVDM_BANKS=print
// tells every place.
std::string check_banks(void);
