"""The shared package of the entry points: the stream states of users in Volcengine RTC rooms."""

import gc

# Loading makes many objects that all stay: to look for garbage among them, as often as by default, takes a twelfth of a
# cold start. The entry points import this package first.
gc.set_threshold(50_000)
