/* What the counter promises, without a node: the plugin built for this machine, on a host that keeps
 * one value. */

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raftkv_plugin.h"

void apply(void);
void query(void);

/* The one command of a batch, until it is taken. */
static const char *offered;
static int tries;

static char stored[64];
static uint32_t stored_len;
static int is_stored;

static char answer[64];
static uint32_t failed;

int64_t raftkv_next_command(void *buf, uint32_t cap) {
    if (offered == NULL) {
        return RAFTKV_NONE;
    }
    uint32_t len = (uint32_t)strlen(offered);
    tries++;
    if (len <= cap) {
        memcpy(buf, offered, len);
        offered = NULL;
    }
    return len;
}

int64_t raftkv_get(const void *key, uint32_t key_len, void *buf, uint32_t cap) {
    assert(key_len == 5 && memcmp(key, "total", 5) == 0);
    if (is_stored && stored_len <= cap) {
        memcpy(buf, stored, stored_len);
    }
    return is_stored ? stored_len : RAFTKV_NONE;
}

void raftkv_put(const void *key, uint32_t key_len, const void *value, uint32_t value_len) {
    assert(key_len == 5 && memcmp(key, "total", 5) == 0 && value_len <= sizeof stored);
    memcpy(stored, value, value_len);
    stored_len = value_len;
    is_stored = 1;
}

void raftkv_respond(const void *bytes, uint32_t len) {
    assert(len < sizeof answer);
    memcpy(answer, bytes, len);
    answer[len] = 0;
}

void raftkv_fail(uint32_t code, const char *message, uint32_t len) {
    assert(code != 0 && strlen(message) == len);
    failed = code;
}

void *raftkv_region(uint32_t len) {
    static void *region;
    region = realloc(region, len);
    assert(region != NULL);
    return region;
}

/* Runs one command, or one query, and gives its answer, or "" if it failed. */
static const char *run(void (*entry)(void), const char *command) {
    offered = command;
    answer[0] = 0;
    failed = 0;
    tries = 0;
    entry();
    assert(offered == NULL);
    return answer;
}

#define CHECK_ANSWER(entry, command, expected) assert(strcmp(run(entry, command), expected) == 0)
#define CHECK_FAILURE(entry, command, code) assert((run(entry, command), failed == code && !answer[0]))

static void steps_add_up(void) {
    CHECK_ANSWER(query, "", "0");
    CHECK_ANSWER(apply, "2", "2");
    CHECK_ANSWER(apply, "", "3");
    CHECK_ANSWER(apply, "0", "3");
    CHECK_ANSWER(apply, "10000000000", "10000000003");
    CHECK_ANSWER(query, "anything", "10000000003");
}

static void what_is_no_number_is_refused(void) {
    const char *commands[] = {"two", "-1", "1.5", " 1", "1 ", "18446744073709551616"};
    for (size_t at = 0; at < sizeof commands / sizeof *commands; at++) {
        CHECK_FAILURE(apply, commands[at], 1);
    }
    CHECK_ANSWER(query, "", "10000000003");
}

static void the_total_keeps_within_its_range(void) {
    CHECK_FAILURE(apply, "18446744073709551615", 2);
    CHECK_ANSWER(apply, "18446744063709551612", "18446744073709551615");
    CHECK_FAILURE(apply, "1", 2);
}

static void a_command_that_does_not_fit_is_asked_for_again(void) {
    static char digits[5000];
    memset(digits, '0', sizeof digits - 1);
    CHECK_ANSWER(apply, digits, "18446744073709551615");
    assert(tries == 2);
}

static void what_somebody_else_wrote_is_refused(void) {
    raftkv_put("total", 5, "seven", 5);
    CHECK_FAILURE(apply, "1", 3);
    CHECK_FAILURE(query, "", 3);
    raftkv_put("total", 5, "more than eight", 15);
    CHECK_FAILURE(query, "", 3);
}

int main(void) {
    steps_add_up();
    what_is_no_number_is_refused();
    the_total_keeps_within_its_range();
    a_command_that_does_not_fit_is_asked_for_again();
    what_somebody_else_wrote_is_refused();
    puts("c-counter: all tests passed");
    return 0;
}
