"""Callbacks: a balance monitor and a temperature schedule."""

from plait.callbacks.balance_monitor import BalanceMonitor
from plait.callbacks.temperature_schedule import TemperatureSchedule

__all__ = ["BalanceMonitor", "TemperatureSchedule"]
