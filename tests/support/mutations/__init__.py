"""Planted defects: how many does the suite catch?"""
