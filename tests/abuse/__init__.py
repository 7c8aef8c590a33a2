"""What somebody would try who wants to get past the gateway, or to bring it down.

The rows are the security test list's: ``test_s01_…`` to ``test_s14_…``; S10, S12 and S13 are proved where keys, adapters and
the audit trail are tested.
"""
