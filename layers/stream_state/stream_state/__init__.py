"""Who publishes audio, video and screens in Volcengine RTC rooms: everything the entry points share."""
