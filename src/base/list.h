/*
 * Intrusive doubly linked list: the head is a node of its own, the list is circular. The list owns
 * nothing; who embeds the node frees it. Not thread-safe: the lock is the embedding structure's.
 */
#ifndef STRATA_BASE_LIST_H
#define STRATA_BASE_LIST_H

#include <stdbool.h>

#include "base/compiler.h"

struct list {
    struct list *next, *prev;
};

static inline void list_init(struct list *head)
{
    head->next = head->prev = head;
}

static inline bool list_is_empty(const struct list *head)
{
    return head->next == head;
}

static inline void list_insert_between(struct list *node, struct list *prev, struct list *next)
{
    node->prev = prev;
    node->next = next;
    prev->next = node;
    next->prev = node;
}

static inline void list_add_head(struct list *head, struct list *node)
{
    list_insert_between(node, head, head->next);
}

static inline void list_add_tail(struct list *head, struct list *node)
{
    list_insert_between(node, head->prev, head);
}

/* Insert `node` just before `at` (which may be the head: then at the tail). */
static inline void list_add_before(struct list *at, struct list *node)
{
    list_insert_between(node, at->prev, at);
}

/* Unlink; the node is left self-linked, so that a second unlink does nothing. */
static inline void list_del(struct list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

#define list_entry(node, type, member) container_of(node, type, member)

/* Iterate over nodes; `break` leaves pos at the node reached. No removal of pos inside. */
#define list_for_each(pos, head) for (pos = (head)->next; pos != (head); pos = pos->next)

/* The same, and pos may be removed inside; `tmp` is the successor. */
#define list_for_each_safe(pos, tmp, head)                                                         \
    for (pos = (head)->next, tmp = pos->next; pos != (head); pos = tmp, tmp = pos->next)

#endif
